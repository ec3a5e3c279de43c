(() => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const byId = (id) => document.getElementById(id);
  const make = (tag, parent, text) => Object.assign(parent.appendChild(document.createElement(tag)), { textContent: text });
  // The video (its address, its name, its pictures), and what is drawn of it.
  let video = null;
  let view;
  let drawing = new AbortController();
  let looking = new AbortController();
  let asking = null;

  const failed = (error) => {
    if (error.name === "AbortError") return;
    byId("error").textContent = error instanceof TypeError ? "The server does not answer." : error.message;
  };
  // Sends a request; whatever is no answer becomes an error with the server's own sentence.
  async function send(path, body, signal) {
    const headers = byId("key").value ? { Authorization: `Bearer ${byId("key").value}` } : {};
    const json = !(body instanceof Blob);
    if (json) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { method: "POST", headers, body: json ? JSON.stringify(body) : body, signal });
    if (response.ok) return response;
    if (response.status === 401) byId("keyfield").hidden = false;
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message ?? `The server answered with status ${response.status}.`);
  }

  const keep = () => page.shares[byId("keep").value];
  const named = () => ({ url: video.url, name: video.name });
  const selectors = () => [...new Set([byId("selector").value, byId("beside").value].filter(Boolean))];

  // What is kept at this budget, without the language model. Only the newest request counts.
  async function look() {
    if (!video) return;
    looking.abort();
    const { signal } = (looking = new AbortController());
    const asked = { video: named(), question: byId("question").value.trim() || null, keep: keep(), selectors: selectors() };
    const of = video;
    try {
      const response = await send("inspect", { ...asked, pictures: !of.pictures }, signal);
      const seen = await response.json();
      if (signal.aborted || of !== video) return;
      of.pictures ??= seen.pictures;
      seen.drawn.moments.forEach((moment, number) => { moment.pictures = of.pictures[number]; });
      byId("error").textContent = "";
      byId("status").textContent = "";
      draw(seen);
    } catch (error) {
      if (!signal.aborted) byId("status").textContent = "";
      failed(error);
    }
  }

  function draw(seen) {
    drawing.abort();
    drawing = new AbortController();
    const onTimeline = document.activeElement?.id === "timeline";
    byId("drawn").replaceChildren(byId("parts").content.cloneNode(true));
    view = drawReport(seen.drawn, view, drawing.signal);
    if (onTimeline) byId("timeline").focus();
    byId("facts").textContent = [...seen.facts, ...seen.warnings].join(" · ");
    figures(seen.figures);
    const several = seen.rows.length > 1;
    byId("compare").hidden = !several;
    byId("overlap").textContent = `also kept by ${seen.rows[0].name}`;
    const body = byId("compare").tBodies[0];
    body.replaceChildren();
    for (const row of several ? seen.rows : []) {
      const line = make("tr", body, "");
      make("th", line, row.name).scope = "row";
      for (const name of ["kept", "important", "diverse", "delta", "overlap"]) make("td", line, row[name]);
    }
  }

  function figures(list) {
    const place = byId("figures");
    place.replaceChildren();
    place.hidden = false;
    place.style.setProperty("--columns", list.length);
    for (const { label, value, note } of list) {
      const cell = make("div", place, "");
      make("dt", cell, label);
      make("dd", cell, value);
      make("dd", cell, note).className = "note";
    }
  }

  const seconds = (value) => (value < 1 ? `${(1000 * value).toPrecision(3)} ms` : `${value.toPrecision(3)} s`);
  function summary(told) {
    const { tokens, prompt_tokens: prompt, seconds: took, selection } = told;
    const count = (number) => number.toLocaleString("en");
    byId("from").textContent = [
      `from ${count(tokens.after)} of ${count(tokens.before)} visual tokens, by ${selection.selector}`,
      `prompt ${count(prompt.before)} → ${count(prompt.after)} tokens`,
      `first token ${seconds(took.time_to_first_token)}`,
      `all ${count(told.generated_tokens)} tokens ${seconds(took.total)}`,
      ...told.warnings,
    ].join(" · ");
  }

  // The events of a streamed answer.
  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) if (part !== "data: [DONE]") yield JSON.parse(part.slice("data: ".length));
    }
  }

  async function ask() {
    if (!video) throw new Error("Choose a video first, or a sample.");
    const question = byId("question").value.trim();
    if (!question) throw new Error("The question is empty.");
    asking?.abort();
    const { signal } = (asking = new AbortController());
    const content = [{ type: "video_url", video_url: named() }, { type: "text", text: question }];
    byId("answer").textContent = byId("from").textContent = byId("error").textContent = "";
    byId("said").hidden = byId("stop").hidden = false;
    byId("answer").textContent = "…";
    let text = "";
    try {
      const body = { messages: [{ role: "user", content }], keep: keep(), selector: byId("selector").value, stream: true };
      for await (const event of events(await send("v1/chat/completions", body, signal))) {
        if (event.error) throw new Error(event.error.message);
        text += event.choices[0]?.delta.content ?? "";
        byId("answer").textContent = text || "…";
        if (event.flashvlm) summary(event.flashvlm);
      }
      byId("answer").textContent = text || "(nothing)";
    } finally {
      if (asking.signal === signal) {
        byId("stop").hidden = true;
        if (!text) byId("said").hidden = true;
      }
    }
    look();
  }

  function show(url, name) {
    video = { url, name, pictures: null };
    view = undefined;
    byId("said").hidden = true;
    byId("named").textContent = name;
    byId("status").textContent = "Looking at the video …";
    return look();
  }

  async function take(file) {
    asking?.abort();
    byId("error").textContent = "";
    if (file.size > page.limit) throw new Error(`${file.name} is larger than the ${page.limit} bytes that this server takes.`);
    byId("named").textContent = file.name;
    byId("status").textContent = "Sending the video …";
    if (byId("sample")) byId("sample").value = "";
    try {
      const { url } = await (await send("videos", file)).json();
      await show(url, file.name);
    } catch (error) {
      byId("status").textContent = "";
      throw error;
    }
  }

  const told = () => {
    byId("share").textContent = keep();
    byId("keep").setAttribute("aria-valuetext", `${keep()} of the visual tokens`);
  };
  byId("keep").value = page.shares.indexOf(page.keep) < 0 ? 5 : page.shares.indexOf(page.keep);
  told();
  byId("keep").addEventListener("input", () => { told(); look(); });
  byId("selector").addEventListener("change", look);
  byId("beside").addEventListener("change", look);
  byId("question").addEventListener("change", look);
  byId("file").addEventListener("change", ({ target }) => { if (target.files[0]) take(target.files[0]).catch(failed); });
  byId("sample")?.addEventListener("change", ({ target }) => { if (target.value) show(`sample:${target.value}`, target.value); });
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask().catch(failed);
  });
  byId("stop").addEventListener("click", () => asking?.abort());
  const over = (on) => (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", on);
  };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", over(false));
  document.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]).catch(failed);
  });
})();
