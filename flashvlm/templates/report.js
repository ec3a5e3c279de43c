"use strict";
// Draws what was kept into the page, at a moment and in a layer, and returns both as they change. What it listens to
// outside of its own elements ends with `ending`.
function drawReport(data, state = { moment: data.opens, layer: "kept" }, ending = undefined) {
  const byId = (id) => document.getElementById(id);
  const last = data.moments.length - 1;
  state.moment = Math.min(state.moment, last);
  if (!data.layers.includes(state.layer)) state.layer = "kept";
  // `group`: the selection and the kept token whose cells are shown together.
  state.group = null;
  const RAMP = ["#0b0724", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf"];
  const MARKS = { 1: "coverage", 2: "question", 3: "kept" };
  const COLOURS = { question: "#e69f00", coverage: "#56b4e9", kept: "#f2f2f2" };
  const NAMES = { 0: "dropped", 1: "kept for coverage", 2: "kept for the question", 3: "kept" };

  const make = (tag, parent, properties = {}) => Object.assign(parent.appendChild(document.createElement(tag)), properties);
  const colour = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
    const low = Math.min(Math.floor(place), RAMP.length - 2);
    const part = (hex, at) => parseInt(hex.slice(at, at + 2), 16);
    const mix = (at) => Math.round(part(RAMP[low], at) + (part(RAMP[low + 1], at) - part(RAMP[low], at)) * (place - low));
    return `rgb(${mix(1)} ${mix(3)} ${mix(5)})`;
  };
  const decoded = new Map();
  const bytes = (text) => {
    if (!decoded.has(text)) decoded.set(text, Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
    return decoded.get(text);
  };
  const numbers = new Map();
  const integers = (text) => {
    if (!numbers.has(text)) numbers.set(text, new Int32Array(bytes(text).buffer));
    return numbers.get(text);
  };
  // The number of each moment's first cell, counted over all moments.
  const firsts = [0];
  for (const moment of data.moments) {
    const [rows, columns] = moment.grid;
    firsts.push(firsts[firsts.length - 1] + rows * columns);
  }
  // The video that the current moment is of.
  const video = () => data.videos[data.moments[state.moment].video];
  const figure = (value) => (value === 0 ? "0" : Math.abs(value) < 0.01 ? value.toExponential(1) : value.toPrecision(3));
  const signal = (selection, name) => data.signals[name] || selection.signals[name];
  const value = (one, level) => one.low + ((one.high - one.low) * level) / 255;

  // The timeline: a track for each selection, a column for each moment.
  const timeline = byId("timeline");
  timeline.setAttribute("aria-valuemax", last + 1);
  const most = Math.max(...data.selections.flatMap((s) => s.counts.flat()), 1);
  const spans = data.selections.map((selection) => [
    Math.max(...selection.counts.map((pair) => pair[0]), most / 12),
    Math.max(...selection.counts.map((pair) => pair[1]), selection.apart ? most / 12 : 0),
  ]);
  const tallest = Math.max(...spans.map(([high, deep]) => high + deep));
  data.selections.forEach((selection, number) => {
    const [high, deep] = spans[number];
    if (data.selections.length > 1) make("p", timeline, { textContent: selection.name });
    const track = make("div", timeline, { className: selection.apart ? "track" : "track plain" });
    // All tracks have one scale.
    track.style.setProperty("--height", `${(84 * (high + deep)) / tallest}px`);
    selection.counts.forEach(([up, down]) => {
      const column = make("div", track, { className: "column" });
      for (const [kind, count, whole] of [["up", up, high], ["down", down, deep]]) {
        const half = make("i", column, { className: kind });
        half.style.flex = `${whole} 1 0`;
        half.style.setProperty("--share", count ? `max(2px, ${(100 * count) / whole}%)` : "0");
      }
    });
  });
  const ticks = Math.min(last + 1, 5, Math.max(2, Math.floor(timeline.clientWidth / 90)));
  const stride = Math.ceil((last + 1) / Math.max(ticks - 1, 1));
  const places = [];
  for (let moment = 0; moment <= last - stride / 2 || moment === 0; moment += stride) places.push(moment);
  for (const moment of last > 0 ? [...places, last] : places) {
    const ends = moment > 0 && moment === last;
    const label = make("span", byId("ticks"), { textContent: data.moments[moment].ticks[ends ? 1 : 0] });
    label.style[ends ? "right" : "left"] = ends ? "10px" : `calc(10px + (100% - 20px) * ${moment / (last + 1)})`;
  }

  // The stage: for each selection the frames of the moment, each a picture under a canvas.
  const shows = data.selections.map((selection) => {
    const panel = make("figure", byId("stage"));
    const title = make("figcaption", panel);
    const frames = make("div", panel, { className: "frames" });
    frames.style.setProperty("--frames", data.frames);
    const views = Array.from({ length: data.frames }, () => {
      const shot = make("div", frames, { className: "shot" });
      const frame = make("div", shot, { className: "frame" });
      const view = {
        shot,
        frame,
        image: make("img", frame, { decoding: "sync", draggable: false }),
        canvas: make("canvas", frame),
        time: make("time", shot),
      };
      view.canvas.setAttribute("aria-hidden", "true");
      frame.addEventListener("pointermove", (event) => readOut(selection, view, event));
      frame.addEventListener("pointerdown", (event) => readOut(selection, view, event));
      frame.addEventListener("pointerleave", () => {
        byId("readout").textContent = "";
        together(null);
      });
      return view;
    });
    return { selection, panel, title, frames, views };
  });
  const widest = Math.max(...data.videos.map(({ size }) => size[0] / size[1]));
  if (widest > 1.2 * (data.frames > 1 ? 0.5 : 1) && shows.length < 3) {
    byId("stage").style.gridTemplateColumns = "1fr";
  }

  const edges = (count, start, end, pixels) =>
    Array.from({ length: count + 1 }, (_, place) => Math.round((start + ((end - start) * place) / count) * pixels));
  // The rows and columns of cells of the current moment, and whether it is known where they lie.
  const cells = () => data.moments[state.moment].grid;
  const placed = () => data.moments[state.moment].placed;
  const grid = (canvas, { area }, [rows, columns]) => [
    edges(columns, area.left, area.right, canvas.width),
    edges(rows, area.top, area.bottom, canvas.height),
  ];

  function draw({ selection, panel, views }) {
    const kept = selection.kept[state.moment];
    const one = state.layer === "kept" ? null : signal(selection, state.layer);
    const group = state.group && state.group.selection === selection ? state.group.kept : null;
    const nearest = integers(selection.nearest[state.moment]);
    panel.classList.toggle("heat", state.layer !== "kept" && placed());
    for (const { shot, frame, canvas } of views) {
      if (shot.hidden) continue;
      const scale = window.devicePixelRatio || 1;
      canvas.width = Math.max(1, Math.round(frame.clientWidth * scale));
      canvas.height = Math.max(1, Math.round(frame.clientHeight * scale));
      if (!placed()) continue;
      const pen = canvas.getContext("2d");
      const [rows, columns] = cells();
      const [xs, ys] = grid(canvas, video(), cells());
      const levels = one && bytes(one.moments[state.moment]);
      pen.fillStyle = "rgb(0 0 0 / .85)";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.clearRect(xs[0], ys[0], xs[columns] - xs[0], ys[rows] - ys[0]);
      for (let cell = 0; cell < rows * columns; cell += 1) {
        const [row, column] = [Math.floor(cell / columns), cell % columns];
        const box = [xs[column], ys[row], xs[column + 1] - xs[column], ys[row + 1] - ys[row]];
        if (levels) {
          pen.globalAlpha = 0.78;
          pen.fillStyle = colour(levels[cell] / 255);
          pen.fillRect(...box);
          pen.globalAlpha = 1;
        } else if (state.layer === "kept" && kept[cell] === "0" && nearest[cell] !== group) {
          pen.fillStyle = "rgb(12 14 18 / .68)";
          pen.fillRect(...box);
        }
        if (kept[cell] !== "0") outline(pen, box, MARKS[kept[cell]], scale);
      }
      if (group !== null) border(pen, [xs, ys], (row, column) => nearest[row * columns + column] === group, scale);
    }
  }

  function outline(pen, [x, y, width, height], kind, scale) {
    const side = Math.min(width, height);
    if (side < 5 * scale && kind !== "question") return;
    const thick = Math.max(1, Math.min(Math.round(side / 16), 4 * scale));
    pen.strokeStyle = COLOURS[kind];
    pen.lineWidth = kind === "kept" ? Math.max(1, thick / 2) : thick;
    const inset = pen.lineWidth / 2;
    const [left, top, right, bottom] = [x + inset, y + inset, x + width - inset, y + height - inset];
    pen.beginPath();
    if (kind === "coverage") {
      const reach = Math.max(2, side * 0.3);
      for (const [cornerX, toX] of [[left, left + reach], [right, right - reach]]) {
        for (const [cornerY, toY] of [[top, top + reach], [bottom, bottom - reach]]) {
          pen.moveTo(toX, cornerY);
          pen.lineTo(cornerX, cornerY);
          pen.lineTo(cornerX, toY);
        }
      }
    } else {
      pen.rect(left, top, right - left, bottom - top);
    }
    pen.stroke();
  }

  // A line around the cells that `inside` is true for.
  function border(pen, [xs, ys], inside, scale) {
    const [rows, columns] = [ys.length - 1, xs.length - 1];
    const is = (row, column) => row >= 0 && column >= 0 && row < rows && column < columns && inside(row, column);
    pen.beginPath();
    for (let row = 0; row <= rows; row += 1) {
      for (let column = 0; column <= columns; column += 1) {
        if (column < columns && is(row, column) !== is(row - 1, column)) {
          pen.moveTo(xs[column], ys[row]);
          pen.lineTo(xs[column + 1], ys[row]);
        }
        if (row < rows && is(row, column) !== is(row, column - 1)) {
          pen.moveTo(xs[column], ys[row]);
          pen.lineTo(xs[column], ys[row + 1]);
        }
      }
    }
    for (const [width, style] of [[4, "#000000"], [2, "#ffffff"]]) {
      pen.lineWidth = width * scale;
      pen.strokeStyle = style;
      pen.stroke();
    }
  }

  // Show together the cells that one kept token stands for; null shows none.
  function together(group) {
    const [before, after] = [state.group, group].map((one) => (one ? `${data.selections.indexOf(one.selection)} ${one.kept}` : ""));
    if (before === after) return;
    state.group = group;
    timeline.querySelectorAll(".track").forEach((track, number) => {
      const selection = data.selections[number];
      track.querySelectorAll(".column").forEach((column, place) => {
        const there = group && group.selection === selection && integers(selection.nearest[place]).includes(group.kept);
        column.classList.toggle("group", Boolean(there));
      });
    });
    shows.forEach(draw);
  }

  function readOut(selection, { canvas }, event) {
    if (!placed()) return;
    const bounds = canvas.getBoundingClientRect();
    const [xs, ys] = grid(canvas, video(), cells());
    const x = ((event.clientX - bounds.left) / bounds.width) * canvas.width;
    const y = ((event.clientY - bounds.top) / bounds.height) * canvas.height;
    const column = xs.findIndex((edge, place) => edge <= x && x < xs[place + 1]);
    const row = ys.findIndex((edge, place) => edge <= y && y < ys[place + 1]);
    if (row < 0 || column < 0) {
      byId("readout").textContent = "outside what the model sees";
      together(null);
      return;
    }
    const cell = row * cells()[1] + column;
    const parts = [`row ${row}, column ${column}`, NAMES[selection.kept[state.moment][cell]]];
    const kept = integers(selection.nearest[state.moment])[cell];
    parts.push(standing(selection, kept, firsts[state.moment] + cell));
    together({ selection, kept });
    for (const name of data.layers) {
      const one = name === "kept" ? null : signal(selection, name);
      if (!one) continue;
      const level = bytes(one.moments[state.moment])[cell];
      parts.push(`${name} ${level === 255 && one.clipped ? "≥ " : ""}${figure(value(one, level))}`);
    }
    byId("readout").textContent = parts.join(" · ");
  }

  // What a kept token stands for, or which one stands for a cell.
  function standing(selection, kept, cell) {
    const moment = firsts.findIndex((first, place) => (kept < 0 ? first === -1 - kept : first <= kept && kept < firsts[place + 1]));
    if (kept !== cell) {
      const columns = data.moments[moment].grid[1];
      const place = kept - firsts[moment];
      const where = kept < 0 ? "the token of the whole frame" : `row ${Math.floor(place / columns)}, column ${place % columns}`;
      return `represented by ${where}${moment === state.moment ? "" : ` at ${data.moments[moment].label}`}`;
    }
    const counts = selection.nearest.map((text) => integers(text).filter((one) => one === kept).length);
    const others = counts.reduce((sum, count) => sum + count, -1);
    const moments = counts.filter((count) => count > 0).length;
    return others ? `represents ${others} other cell${others > 1 ? "s" : ""} in ${moments} moment${moments > 1 ? "s" : ""}` : "represents no other cell";
  }

  function mark(parent, kind, text) {
    const entry = make("span", parent);
    make("i", entry, { className: `mark ${kind}` });
    entry.append(text);
  }

  function legend() {
    const place = byId("legend");
    place.replaceChildren();
    const alone = data.selections.length === 1 ? data.selections[0].signals[state.layer] : null;
    const one = state.layer === "kept" ? null : data.signals[state.layer] || alone;
    if (state.layer !== "kept") {
      const entry = make("span", place);
      entry.append(one ? figure(one.low) : "lowest");
      make("i", entry, { className: "ramp" }).style.background = `linear-gradient(90deg, ${RAMP.join(", ")})`;
      entry.append(one ? `${one.clipped ? "≥ " : ""}${figure(one.high)}` : "highest");
    }
    for (const [kind, text] of data.legend) if (state.layer === "kept" || kind !== "dropped") mark(place, kind, text);
  }

  function show() {
    const moment = data.moments[state.moment];
    timeline.setAttribute("aria-valuenow", state.moment + 1);
    const told = data.selections.map((s) => {
      const [up, down] = s.counts[state.moment];
      const name = data.selections.length > 1 ? `${s.name}: ` : "";
      return name + (s.apart ? `${up} for the question, ${down} for coverage` : `${up} kept`);
    });
    timeline.setAttribute("aria-valuetext", `Moment ${state.moment + 1} of ${last + 1}, ${moment.label}; ${told.join("; ")}`);
    for (const track of timeline.querySelectorAll(".track")) {
      track.querySelectorAll(".column").forEach((column, place) => column.classList.toggle("now", place === state.moment));
    }
    byId("when").textContent = moment.label;
    make("small", byId("when"), { textContent: `moment ${state.moment + 1} of ${last + 1}` });
    byId("before").disabled = state.moment === 0;
    byId("after").disabled = state.moment === last;
    document.querySelectorAll("#layers button").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.layer === state.layer);
    });
    const [wide, high] = video().size;
    for (const { selection, panel, frames, title, views } of shows) {
      panel.classList.toggle("wide", wide > high);
      frames.style.setProperty("--aspect", wide / high);
      title.replaceChildren();
      if (data.selections.length > 1) make("b", title, { textContent: selection.name });
      const [up, down] = selection.counts[state.moment];
      if (selection.apart) {
        mark(title, "question", `${up} for the question`);
        mark(title, "coverage", `${down} for coverage`);
      } else {
        mark(title, "kept", `${up} kept`);
      }
      if (selection.whole[state.moment]) mark(title, "class", "the token of the whole frame");
      if (state.layer !== "kept" && !signal(selection, state.layer)) make("span", title, { textContent: `no ${state.layer}` });
      views.forEach((view, place) => {
        view.shot.hidden = place >= moment.pictures.length;
        if (view.shot.hidden) return;
        if (view.shown !== moment.pictures[place]) view.image.src = view.shown = moment.pictures[place];
        view.image.alt = `Frame at ${moment.times[place]}`;
        view.time.textContent = moment.times[place];
      });
    }
    shows.forEach(draw);
    legend();
  }

  const go = (moment) => {
    const next = Math.min(Math.max(moment, 0), last);
    if (next !== state.moment) {
      state.moment = next;
      byId("readout").textContent = "";
      together(null);
      show();
    }
  };
  const look = (layer) => {
    state.layer = layer;
    show();
  };

  const scrub = (event) => {
    const bounds = timeline.getBoundingClientRect();
    go(Math.floor(((event.clientX - bounds.left - 10) / (bounds.width - 20)) * (last + 1)));
  };
  timeline.addEventListener("pointerdown", (event) => {
    timeline.setPointerCapture(event.pointerId);
    timeline.focus({ focusVisible: false });
    scrub(event);
  });
  timeline.addEventListener("pointermove", (event) => { if (timeline.hasPointerCapture(event.pointerId)) scrub(event); });
  byId("before").addEventListener("click", () => go(state.moment - 1));
  byId("after").addEventListener("click", () => go(state.moment + 1));
  document.querySelectorAll("#layers button").forEach((button) => {
    button.hidden = !data.layers.includes(button.dataset.layer);
    button.addEventListener("click", () => look(button.dataset.layer));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const leap = Math.max(1, Math.round((last + 1) / 10));
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -leap, PageDown: leap, Home: -last, End: last };
    if (document.activeElement === timeline) Object.assign(steps, { ArrowUp: 1, ArrowDown: -1 });
    const button = document.querySelector(`#layers button:not([hidden])[data-key="${CSS.escape(event.key)}"]`);
    const onTimeline = document.activeElement === timeline;
    if (event.key in steps && (onTimeline || event.key.startsWith("Arrow"))) go(state.moment + steps[event.key]);
    else if (button) look(button.dataset.layer);
    else return;
    event.preventDefault();
  }, { signal: ending });
  window.addEventListener("resize", () => shows.forEach(draw), { signal: ending });
  show();
  return state;
}
