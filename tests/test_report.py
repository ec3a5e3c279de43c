"""The report: one page that holds everything, and works in a browser with mouse, keyboard and on a phone."""

import base64
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from clips import steady, write_clip

from flashvlm import VideoQA, page
from flashvlm.options import AskOptions, Sampling
from flashvlm.report import Answer, Inspection
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

SAMPLES = samples_dir()
# A browser that was killed is no finding about the report.
in_browser = pytest.mark.flaky(reruns=2, only_rerun="TargetClosedError")


def looked_at(
    qa: VideoQA,
    path: Path,
    question: str | None,
    selectors: tuple[str, ...] = ("flashvlm",),
    answered: bool = True,
    **options,
) -> tuple[list[Inspection], Answer | None]:
    asked = [AskOptions(selector=selector, **options) for selector in selectors]
    watched = qa.watch(path, asked[0])
    choices = [qa.choose(watched, question, one) for one in asked]
    answer = qa.respond(choices[0]) if question and answered else None
    return [qa.inspect(choice) for choice in choices], answer


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


class Addresses(HTMLParser):
    """Whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag, attrs) -> None:
        self.scripts += tag == "script"
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_page_holds_what_was_kept(demo: VideoQA) -> None:
    (inspection,), answer = looked_at(demo, SAMPLES / "sequence.mp4", "Is there a bicycle?")
    html = page.render([inspection], answer)
    data = data_of(html)
    (selection,) = data["selections"]
    for moment, cells in zip(inspection.moments, selection["kept"], strict=True):
        asked = [cell for cell, important in zip(moment.kept, moment.important, strict=True) if important]
        assert [divmod(place, 8) for place, kept in enumerate(cells) if kept == "2"] == asked
        assert cells.count("1") + cells.count("2") == len(moment.kept)
    assert answer is not None and f"</span> {answer.answer}</p>" in html
    values = np.frombuffer(base64.b64decode(data["signals"]["relevance"]["moments"][10]), np.uint8)
    # In 256 steps several cells may be the highest.
    highest = int(np.argmax(inspection.signals["relevance"].moments[10]))
    assert values.shape == (64,) and values[highest] == values.max() > np.median(values)
    assert [len(moment["pictures"]) for moment in data["moments"]] == [2] * 12
    assert data["layers"] == ["kept", "saliency", "relevance", "score", "distance"]


def test_the_page_loads_nothing(demo: VideoQA) -> None:
    inspections, answer = looked_at(demo, SAMPLES / "still.jpg", "What is there?")
    html = page.render(inspections, answer)
    addresses = Addresses()
    addresses.feed(html)
    assert all(address.startswith("data:") for address in addresses.found)
    assert not re.search(r"https?:|@import|url\(", html)


def test_neither_a_question_nor_a_name_can_run(demo: VideoQA, tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    shutil.copy(SAMPLES / "still.jpg", path)
    inspections, _ = looked_at(demo, path, "What</script><script>alert('x')</script>{{ 7 * 7 }}?", answered=False)
    html = page.render(inspections)
    addresses = Addresses()
    addresses.feed(html)
    assert addresses.scripts == 2 and "x" not in addresses.found
    assert "&lt;script&gt;" in html and "{{ 7 * 7 }}" in html


def noise(number: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_64_moments_of_what_cannot_be_compressed_stay_below_5_mb(demo: VideoQA, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "noise.mp4", steady(128, 25), size=(640, 360), picture=noise)
    sampling = Sampling(frames=128, max_frames=128)
    inspections, _ = looked_at(demo, clip, None, sampling=sampling, max_pixels=56 * 56)
    assert len(inspections[0].moments) == 64
    size = page.write(tmp_path / "report.html", inspections).stat().st_size
    assert 1_000_000 < size < 5_000_000


def test_without_a_question_there_is_no_relevance(demo: VideoQA) -> None:
    inspections, _ = looked_at(demo, SAMPLES / "one.mp4", None, ("flashvlm", "uniform"))
    html = page.render(inspections)
    assert data_of(html)["layers"] == ["kept", "saliency", "score", "distance"]
    assert "No question asked" in html and "Answer</span>" not in html
    assert data_of(html)["selections"][1]["signals"].keys() == {"distance"}


def test_ask_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.html"
    command = ["ask", str(SAMPLES / "one.mp4"), "What happens?", "--report", str(path), "--json"]
    assert main([*command, "--model", "demo", "--device", "cpu", "--dtype", "float32"]) == 0
    answer = json.loads(capsys.readouterr().out)
    html = path.read_text()
    assert answer["answer"] in html
    kept = "".join(data_of(html)["selections"][0]["kept"])
    assert len(kept) - kept.count("0") == answer["tokens"]["after"]


@pytest.fixture
def opened(browser, tmp_path: Path):
    """Open a report at a size, in a colour scheme; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_page(inspections, answer=None, width=1200, height=900, scheme="light", touch=False):
        path = page.write(tmp_path / "report.html", inspections, answer)
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch, offline=True
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def now(tab) -> int:
    return int(tab.get_attribute("#timeline", "aria-valuenow"))


def go_to_start(tab) -> None:
    tab.focus("#timeline")
    tab.keyboard.press("Home")


def pixels(tab, canvas: int = 0) -> str:
    return tab.evaluate(f"document.querySelectorAll('#stage canvas')[{canvas}].toDataURL()")


@in_browser
def test_each_moment_is_shown_as_its_video_is(demo: VideoQA, opened) -> None:
    watched = demo.watch([SAMPLES / "one.mp4", SAMPLES / "still.jpg"], AskOptions())
    tab = opened([demo.inspect(demo.choose(watched, "What happens?", AskOptions()))])
    go_to_start(tab)
    high = tab.locator("#stage img").first.bounding_box()
    assert "video 1 · 0:00" in tab.inner_text("#when") and high["height"] > high["width"]
    tab.focus("#timeline")
    tab.keyboard.press("End")
    wide = tab.locator("#stage img").first.bounding_box()
    assert "video 2 · 6 × 9 cells" in tab.inner_text("#when") and wide["width"] > wide["height"]
    tab.mouse.move(wide["x"] + wide["width"] - 3, wide["y"] + 3)
    assert tab.inner_text("#readout").startswith("row 0, column 8 · ")


@in_browser
def test_the_timeline_scrubs(demo: VideoQA, opened) -> None:
    inspections, answer = looked_at(demo, SAMPLES / "sequence.mp4", "Is there a bicycle?")
    tab = opened(inspections, answer)
    moment = inspections[0].moments[10]
    told = f"{moment.important_count} for the question, {moment.kept_count - moment.important_count} for coverage"
    # It opens where the bicycle is.
    assert now(tab) == 11 and told in tab.get_attribute("#timeline", "aria-valuetext")
    go_to_start(tab)
    first, picture = pixels(tab), tab.get_attribute("#stage img", "src")
    tab.keyboard.press("ArrowRight")
    assert now(tab) == 2 and pixels(tab) != first and tab.get_attribute("#stage img", "src") != picture
    tab.focus("#timeline")
    tab.keyboard.press("End")
    assert now(tab) == 12 and tab.is_disabled("#after")
    tab.keyboard.press("ArrowRight")
    assert now(tab) == 12
    box = tab.locator("#timeline").bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 10.5 / 12, box["y"] + 40)
    tab.mouse.down()
    assert now(tab) == 11
    tab.mouse.move(box["x"] + 12, box["y"] + 40, steps=4)
    assert now(tab) == 1
    tab.mouse.up()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    assert now(tab) == 1
    tab.click("#after")
    assert now(tab) == 2 and "moment 2 of 12" in tab.inner_text("#when")


@in_browser
def test_the_layers_switch_with_keys_and_buttons(demo: VideoQA, opened) -> None:
    tab = opened(*looked_at(demo, SAMPLES / "sequence.mp4", "Is there a bicycle?"))
    seen = {}
    for key, name in enumerate(("kept", "saliency", "relevance", "score", "distance"), 1):
        tab.keyboard.press(str(key))
        assert tab.get_attribute(f'[data-layer="{name}"]', "aria-pressed") == "true"
        assert tab.locator('[aria-pressed="true"]').count() == 1
        seen[name] = pixels(tab)
    assert len(set(seen.values())) == 5
    tab.click('[data-layer="kept"]')
    assert pixels(tab) == seen["kept"]


@in_browser
def test_a_cell_tells_its_numbers(demo: VideoQA, opened) -> None:
    (inspection,), answer = looked_at(demo, SAMPLES / "sequence.mp4", "Is there a bicycle?")
    tab = opened([inspection], answer)
    go_to_start(tab)
    tab.locator(".frame").first.scroll_into_view_if_needed()
    box = tab.locator(".frame").first.bounding_box()
    row, column = inspection.moments[0].kept[0]
    tab.mouse.move(box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8)
    told = tab.inner_text("#readout")
    assert told.startswith(f"row {row}, column {column} · kept for") and "saliency" in told and "score" in told


@in_browser
def test_a_kept_cell_shows_what_it_stands_for(demo: VideoQA, opened) -> None:
    (inspection,), answer = looked_at(demo, SAMPLES / "sequence.mp4", "Is there a bicycle?")
    tab = opened([inspection], answer)
    go_to_start(tab)
    counts = Counter(cell for moment in inspection.moments for cell in moment.nearest)
    # The cell of the first moment that stands for most others.
    row, column = max(inspection.moments[0].kept, key=lambda cell: counts[cell[0] * 8 + cell[1]])
    cell = row * 8 + column
    moments = [place for place, moment in enumerate(inspection.moments) if cell in moment.nearest]
    plain = pixels(tab)
    tab.locator(".frame").first.scroll_into_view_if_needed()
    box = tab.locator(".frame").first.bounding_box()
    tab.mouse.move(box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8)
    assert f"represents {counts[cell] - 1} other cells in {len(moments)} moment" in tab.inner_text("#readout")
    marked = tab.locator(".column").evaluate_all("all => all.map((one) => one.classList.contains('group'))")
    assert [place for place, has in enumerate(marked) if has] == moments and pixels(tab) != plain
    dropped = next(c for c, nearest in enumerate(inspection.moments[0].nearest) if nearest == cell and c != cell)
    row, column = divmod(dropped, 8)
    tab.mouse.move(box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8)
    assert f"represented by row {cell // 8}, column {cell % 8}" in tab.inner_text("#readout")
    tab.mouse.move(0, 0)
    assert pixels(tab) == plain


@in_browser
def test_the_canvas_is_clear_where_a_cell_is_kept(demo: VideoQA, opened) -> None:
    (inspection,), answer = looked_at(demo, SAMPLES / "two.mp4", "What moves down?")
    tab = opened([inspection], answer)
    go_to_start(tab)
    moment = inspection.moments[0]
    alphas = tab.evaluate(
        """([rows, columns]) => {
            const canvas = document.querySelector("#stage canvas");
            const {data, width, height} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return Array.from({length: rows * columns}, (_, cell) => data[4 * (
                Math.floor((Math.floor(cell / columns) + 0.5) / rows * height) * width
                + Math.floor((cell % columns + 0.5) / columns * width)) + 3]);
        }""",
        [moment.grid_height, moment.grid_width],
    )
    clear = [divmod(cell, moment.grid_width) for cell, alpha in enumerate(alphas) if alpha == 0]
    assert clear == list(moment.kept)


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(demo: VideoQA, opened, scheme: str) -> None:
    inspections, _ = looked_at(demo, SAMPLES / "two.mp4", "What moves down?", ("flashvlm", "paper", "uniform"))
    tab = opened(inspections, width=360, height=740, scheme=scheme, touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.locator("#stage figure").count() == 3 and tab.locator("#timeline .track").count() == 3
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 128) == (scheme == "dark")
    tab.locator("#timeline").scroll_into_view_if_needed()
    box = tab.locator("#timeline").bounding_box()
    tab.touchscreen.tap(box["x"] + box["width"] * 5.5 / 8, box["y"] + box["height"] / 2)
    assert now(tab) == 6
    for button in tab.locator("button").all():
        assert button.bounding_box()["height"] >= 40


@in_browser
def test_a_still_picture_is_one_moment(demo: VideoQA, opened) -> None:
    tab = opened(*looked_at(demo, SAMPLES / "still.jpg", "What is there?"))
    assert tab.is_disabled("#before") and tab.is_disabled("#after")
    assert tab.evaluate("document.querySelector('#stage img').naturalWidth") > 0
    assert "1 frame in 1 moment ·" in tab.inner_text(".facts")


@in_browser
def test_a_long_question_wraps(demo: VideoQA, opened) -> None:
    asked = "What happens? " * 40 + 400 * "x"
    tab = opened(looked_at(demo, SAMPLES / "still.jpg", asked, answered=False)[0], width=360, height=740)
    assert "xxx" in tab.inner_text(".warning")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
