"""The server's page: a video, a question, the streamed answer and the slider, in a browser."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flashvlm import VideoQA
from flashvlm.options import AskOptions
from flashvlm.samples import samples_dir
from flashvlm.serve.run import address_of, listen, serve
from flashvlm.serve.settings import Serving

SAMPLES = samples_dir()
PATIENCE = 60
in_browser = pytest.mark.flaky(reruns=2, only_rerun="TargetClosedError")


@pytest.fixture(scope="module")
def address(demo: VideoQA) -> Iterator[str]:
    """Where a server of the demo model listens."""
    settings = Serving(port=0, max_upload=400_000)
    listening, ready, ends = listen(settings), threading.Event(), list[Callable[[], None]]()

    def started(end: Callable[[], None]) -> None:
        ends.append(end)
        ready.set()

    thread = threading.Thread(target=lambda: serve(demo, listening, settings, AskOptions(), on_start=started))
    thread.start()
    assert ready.wait(PATIENCE)
    yield address_of(listening)
    ends[0]()
    thread.join(PATIENCE)


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page; whatever it loads from elsewhere, or the browser complains of, fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(width: int = 1200, height: int = 900, scheme: str = "light", touch: bool = False) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch)
        contexts.append(context)
        opened = context.new_page()
        # The browser itself reports a request that the server refuses.
        opened.on("console", lambda told: "the server responded with" in told.text or complaints.append(told.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda asked: asked.url.startswith((address, "data:")) or complaints.append(asked.url))
        opened.goto(address)
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def drawn(tab: Any) -> None:
    tab.wait_for_selector("#stage img")


def kept(tab: Any) -> int:
    """How many tokens the page says are kept."""
    return int(re.search(r"→ ([\d,]+)", tab.inner_text("#figures dd"))[1].replace(",", ""))


def moved(tab: Any, after: int) -> None:
    """Wait until so many tokens are kept."""
    tab.locator("#figures dd", has_text=re.compile(f"→\\s{after}$")).wait_for()


def told(tab: Any, sentence: str) -> None:
    """Wait until the page tells this error."""
    tab.locator("#error", has_text=sentence).wait_for()


@in_browser
def test_a_video_is_sent_asked_about_and_looked_through(tab: Any, demo: VideoQA) -> None:
    opened = tab()
    opened.set_input_files("#file", str(SAMPLES / "two.mp4"))
    drawn(opened)
    assert "two.mp4" in opened.inner_text("#facts") and kept(opened) == 48
    opened.fill("#question", "What moves down?")
    opened.keyboard.press("Enter")
    opened.wait_for_selector("#from:not(:empty)")
    asked = demo.ask(SAMPLES / "two.mp4", "What moves down?")
    assert opened.inner_text("#answer") == asked.answer
    assert f"from {asked.tokens.after} of {asked.tokens.before} visual tokens" in opened.inner_text("#from")
    # Now that there is a question, there is relevance to see.
    opened.wait_for_selector('[data-layer="relevance"]:not([hidden])')
    opened.click("#when")
    opened.keyboard.press("3")
    assert opened.get_attribute('[data-layer="relevance"]', "aria-pressed") == "true"


@in_browser
def test_the_slider_changes_what_is_kept_at_once(tab: Any) -> None:
    opened = tab()
    opened.select_option("#sample", "two.mp4")
    drawn(opened)
    opened.focus("#timeline")
    opened.keyboard.press("ArrowRight")
    opened.focus("#keep")
    opened.keyboard.press("ArrowRight")
    moved(opened, 72)
    assert opened.inner_text("#share") == "15%"
    # The moment stays.
    assert opened.get_attribute("#timeline", "aria-valuenow") == "2"
    opened.keyboard.press("Home")
    moved(opened, 5)


@in_browser
def test_two_selectors_stand_side_by_side(tab: Any) -> None:
    opened = tab()
    opened.select_option("#sample", "two.mp4")
    drawn(opened)
    opened.select_option("#beside", "uniform")
    opened.wait_for_selector("#compare:not([hidden])")
    assert opened.locator("#stage figure").count() == 2 and opened.locator("#timeline .track").count() == 2
    assert opened.locator("#compare tbody th").all_inner_texts() == ["flashvlm", "uniform"]


@in_browser
def test_an_answer_streams(tab: Any) -> None:
    opened = tab()
    opened.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => seen.push(document.getElementById("answer").textContent))
                .observe(document.getElementById("answer"), {childList: true});
        }"""
    )
    opened.select_option("#sample", "sequence.mp4")
    drawn(opened)
    opened.fill("#question", "Describe the video.")
    opened.click("#ask")
    opened.wait_for_selector("#from:not(:empty)")
    seen = [text for text in dict.fromkeys(opened.evaluate("seen")) if text not in ("", "…")]
    assert len(seen) > 1 and all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert opened.is_hidden("#stop")


@in_browser
def test_errors_are_sentences(tab: Any, tmp_path: Path) -> None:
    opened = tab()
    opened.click("#ask")
    told(opened, "Choose a video first, or a sample.")
    (tmp_path / "text<b>.mp4").write_text("this is text")
    opened.set_input_files("#file", str(tmp_path / "text<b>.mp4"))
    told(opened, "text<b>.mp4: this is not a video or a picture that can be read.")
    (tmp_path / "large.mp4").write_bytes(bytes(400_001))
    opened.set_input_files("#file", str(tmp_path / "large.mp4"))
    told(opened, "large.mp4 is larger than the 400000 bytes that this server takes.")
    opened.select_option("#sample", "one.mp4")
    drawn(opened)
    assert opened.inner_text("#error") == ""


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_the_page(tab: Any, scheme: str) -> None:
    opened = tab(width=360, height=740, scheme=scheme, touch=True)
    opened.select_option("#sample", "two.mp4")
    drawn(opened)
    opened.select_option("#beside", "uniform")
    opened.wait_for_selector("#compare:not([hidden])")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 128) == (scheme == "dark")
    for control in opened.locator("button:visible, select:visible, input[type=text]:visible").all():
        assert control.bounding_box()["height"] >= 40


def test_the_page_may_run_its_own_script_only(address: str) -> None:
    from urllib.request import urlopen

    with urlopen(address) as response:
        policy, html = response.headers["Content-Security-Policy"], response.read().decode()
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "connect-src 'self'" in policy
    assert not re.search(r"https?:|@import|url\(", html)
