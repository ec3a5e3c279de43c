"""Overlays: a cell in the picture is the pixels of that token, and the files are what they are said to be."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, load, tiny_llava_onevision, tiny_qwen2_5_vl, tiny_video_llava
from clips import numbered_frame, steady, write_clip
from PIL import Image, ImageColor

from flashvlm import VideoQA, overlay, page, video
from flashvlm.encode import Features
from flashvlm.errors import OutputError, UsageError, VideoError
from flashvlm.options import AskOptions, Keep, Sampling
from flashvlm.report import Area, Inspection, Moment
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

SAMPLES = samples_dir()
DEMO = ["--model", "demo", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> VideoQA:
    return load(tiny_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl")))


@pytest.fixture(scope="module")
def cropping(tmp_path_factory: pytest.TempPathFactory) -> VideoQA:
    return load(tiny_video_llava(tmp_path_factory.mktemp("video_llava")))


def inspected(qa: VideoQA, path: Path, question: str | None = None, **options) -> Inspection:
    asked = AskOptions(**options)
    watched = qa.watch(path, asked)
    return qa.inspect(qa.choose(watched, question, asked))


def wandering(number: int, width: int, height: int) -> np.ndarray:
    """A white thing on black, at a place of its own in each frame and on the border of no cell."""
    picture = np.full((height, width, 3), 16, np.uint8)
    left, top = (0.13 + 0.11 * number) * width, (0.62 - 0.09 * number) * height
    picture[round(top) : round(top + 0.31 * height), round(left) : round(left + 0.23 * width)] = 235
    return picture


def brightness(qa: VideoQA, values: torch.Tensor) -> torch.Tensor:
    """The first channel as the encoder gets it, 0 where the background is and 1 where the thing is."""
    return ((values * qa.backend.std[0] + qa.backend.mean[0]) * 255 - 16) / (235 - 16)


def shown_to_qwen(monkeypatch: pytest.MonkeyPatch, qa: VideoQA, path: Path, sampling: Sampling) -> np.ndarray:
    """How much of the thing each token's own pixels show, (groups, rows, columns), as the encoder gets them."""
    from flashvlm.backends import qwen2_vl

    seen = {}
    make = qwen2_vl.qwen2_vl_patches

    def spy(*args, **kwargs):
        seen["patches"], seen["grid"] = made = make(*args, **kwargs)
        return made

    monkeypatch.setattr(qwen2_vl, "qwen2_vl_patches", spy)
    qa.watch(path, AskOptions(sampling=sampling))
    groups, height, width = seen["grid"][0].tolist()
    # The first channel; two by two patches, one after the other, are one token.
    bright = brightness(qa, seen["patches"].view(len(seen["patches"]), 3, -1)[:, 0])
    return bright.reshape(groups, height // 2, width // 2, -1).mean(-1).numpy()


def shown_to_clip(monkeypatch: pytest.MonkeyPatch, qa: VideoQA, path: Path, sampling: Sampling) -> np.ndarray:
    from flashvlm.backends import video_llava

    seen = {}
    make = video_llava.clip_pixels

    def spy(*args, **kwargs):
        seen["pixels"] = make(*args, **kwargs)
        return seen["pixels"]

    monkeypatch.setattr(video_llava, "clip_pixels", spy)
    qa.watch(path, AskOptions(sampling=sampling))
    bright = brightness(qa, seen["pixels"][:, 0])
    return bright.unfold(1, 14, 14).unfold(2, 14, 14).mean((-1, -2)).numpy()


def shown_in_cells(inspection: Inspection) -> np.ndarray:
    """How much of the thing is in each cell of the displayed pictures, as the overlay divides them."""
    return np.stack(shown_by_moment(inspection))


def shown_by_moment(inspection: Inspection) -> list[np.ndarray]:
    moments = []
    for moment in inspection.moments:
        frames = []
        for picture in video.frames_at(inspection.video.path, moment.timestamps):
            bright = (picture[0].numpy().astype(float) - 16) / (235 - 16)
            area, (height, width) = inspection.area, bright.shape
            across = overlay.edges(area.left, area.right, moment.grid_width, width)
            down = overlay.edges(area.top, area.bottom, moment.grid_height, height)
            cells = np.empty((moment.grid_height, moment.grid_width))
            for row, column in np.ndindex(cells.shape):
                cells[row, column] = bright[down[row] : down[row + 1], across[column] : across[column + 1]].mean()
            frames.append(cells)
        moments.append(np.mean(frames, axis=0))
    return moments


SHAPES = [((160, 96), 0), ((161, 97), 0), ((99, 203), 0), ((122, 214), 90), ((301, 175), 270)]


@pytest.mark.parametrize(("size", "rotation"), SHAPES)
@pytest.mark.parametrize("frames", [6, 5])
def test_a_cell_is_the_pixels_of_its_token_in_qwen2_vl(demo, monkeypatch, tmp_path, size, rotation, frames) -> None:
    path = write_clip(tmp_path / "clip.mp4", steady(6, 2), size=size, rotation=rotation, picture=wandering)
    sampling = Sampling(frames=frames)
    tokens = shown_to_qwen(monkeypatch, demo, path, sampling)
    cells = shown_in_cells(inspected(demo, path, sampling=sampling))
    assert cells.shape == tokens.shape and tokens.max() > 0.8
    # Cells are a few pixels wide at these sizes: one pixel is up to a tenth of them.
    assert np.abs(cells - tokens).max() < 0.15
    assert np.abs(cells - tokens).mean() < 0.02


@pytest.mark.parametrize(("size", "rotation"), SHAPES[1:4])
def test_a_cell_is_the_pixels_of_its_token_behind_windows(windows, monkeypatch, tmp_path, size, rotation) -> None:
    path = write_clip(tmp_path / "clip.mp4", steady(6, 2), size=size, rotation=rotation, picture=wandering)
    sampling = Sampling(frames=6)
    tokens = shown_to_qwen(monkeypatch, windows, path, sampling)
    cells = shown_in_cells(inspected(windows, path, sampling=sampling))
    assert cells.shape == tokens.shape
    assert np.abs(cells - tokens).max() < 0.15


@pytest.mark.parametrize(("size", "rotation"), SHAPES)
def test_a_cell_is_the_pixels_of_its_token_behind_a_crop(cropping, monkeypatch, tmp_path, size, rotation) -> None:
    path = write_clip(tmp_path / "clip.mp4", steady(4, 2), size=size, rotation=rotation, picture=wandering)
    sampling = Sampling(frames=4)
    tokens = shown_to_clip(monkeypatch, cropping, path, sampling)
    inspection = inspected(cropping, path, sampling=sampling)
    assert inspection.area != Area()
    assert np.abs(shown_in_cells(inspection) - tokens).max() < 0.06


def tiny_left_over(folder: Path) -> Path:
    """Frames of 75 x 75 pixels, of which whole patches fill 70 x 70."""
    config = json.loads((tiny_llava_onevision(folder) / "config.json").read_text())
    config["vision_config"]["image_size"] = 75
    config["image_grid_pinpoints"] = [[height, width] for height in (75, 150) for width in (75, 150, 225)]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("size", "rotation"), SHAPES[:4])
@pytest.mark.parametrize("family", ["smolvlm", "llava_onevision", "internvl", "llava", "pixels left over"])
def test_a_cell_is_the_pixels_of_its_token_in_a_square(family, monkeypatch, tmp_path, size, rotation) -> None:
    qa = load(FAMILIES.get(family, tiny_left_over)(tmp_path / "model"))
    path = write_clip(tmp_path / "clip.mp4", steady(4, 2), size=size, rotation=rotation, picture=wandering)
    seen: list[torch.Tensor] = []
    make = qa.backend.pixels

    def spy(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.extend((made := make(frames)).values())
        return made

    monkeypatch.setattr(qa.backend, "pixels", spy)
    inspection = inspected(qa, path, sampling=Sampling(frames=4), encode="all")
    side = qa.backend.patches * qa.backend.patch
    bright = torch.cat([brightness(qa, one.flatten(0, -4)[:, 0, :side, :side]) for one in seen])
    grid = (inspection.moments[0].grid_height, inspection.moments[0].grid_width)
    tokens = torch.nn.functional.adaptive_avg_pool2d(bright, grid).numpy()
    assert (inspection.area == Area()) == (family in ("smolvlm", "llava_onevision", "internvl"))
    assert np.abs(shown_in_cells(inspection) - tokens).max() < 0.06


@pytest.mark.parametrize("size", [(300, 110), (130, 470)])
@pytest.mark.parametrize("family", ["smolvlm", "llava_onevision", "internvl", "pixels left over"])
def test_a_cell_of_a_picture_in_tiles_is_the_pixels_of_its_token(family, monkeypatch, tmp_path, size) -> None:
    qa = load(FAMILIES.get(family, tiny_left_over)(tmp_path / "model"))
    path = tmp_path / "picture.png"
    Image.fromarray(wandering(1, *size)).save(path)
    name = "unpooled" if hasattr(qa.backend, "unpooled") else "features"
    make = getattr(qa.backend, name)

    def bright(tiles: torch.Tensor) -> Features:
        made, side = make(tiles), qa.backend.patches * qa.backend.patch
        (pixels,) = qa.backend.pixels(tiles).values()
        seen = brightness(qa, pixels.flatten(0, -4)[:, 0, :side, :side]).clamp(min=0)
        cells = round(made.saliency.shape[1] ** 0.5)
        return made._replace(saliency=torch.nn.functional.adaptive_avg_pool2d(seen, cells).flatten(1))

    monkeypatch.setattr(qa.backend, name, bright)
    inspection = inspected(qa, path)
    assert len(inspection.moments) == 2 and inspection.frames == 1
    shown = shown_by_moment(inspection)
    for cells, values in zip(shown, inspection.signals["saliency"].moments, strict=True):
        apart = np.abs(cells - np.reshape(values, cells.shape))
        # The edges of the thing, where pixels are left over between tiles, or a canvas has whole patches.
        assert apart.mean() < 0.04 and apart.max() < 0.65
    assert max(cells.size for cells in shown) > min(cells.size for cells in shown)


def test_where_nobody_knows_the_places_of_tokens_nothing_is_marked(demo: VideoQA) -> None:
    picture = Image.new("RGB", (101, 67), (200, 180, 160))
    moment = Moment((0.0,), 12, 1, 12, ((0, 1), (0, 3)), (True, False), placed=False)
    assert overlay.mark(picture, moment, Area()) == picture
    seen = replace(inspected(demo, SAMPLES / "still.jpg"), moments=(moment,))
    assert overlay.label(seen, 0) == "where its tokens lie is not known"


def test_kept_cells_are_left_as_they_are_and_all_others_dimmed() -> None:
    picture = Image.new("RGB", (101, 67), (200, 180, 160))
    moment = Moment((0.0,), 12, 3, 4, ((0, 1), (2, 3)), (True, False))
    marked = np.asarray(overlay.mark(picture, moment, Area()))
    across, down = overlay.edges(0, 1, 4, 101), overlay.edges(0, 1, 3, 67)
    for row, column in np.ndindex(3, 4):
        middle = marked[(down[row] + down[row + 1]) // 2, (across[column] + across[column + 1]) // 2]
        kept = (row, column) in moment.kept
        assert (middle.tolist() == [200, 180, 160]) == kept
        assert kept or middle.max() < 100
    border = marked[down[0], across[1] : across[2]]
    assert (border == (0xE6, 0x9F, 0x00)).all(), "a cell kept for the question has a frame"
    corner, edge = marked[down[2], across[3]], marked[down[2], (across[3] + across[4]) // 2]
    assert corner.tolist() == [0x56, 0xB4, 0xE9] and edge.tolist() == [200, 180, 160], "one for coverage has corners"


def test_what_a_crop_leaves_out_is_darker_than_what_was_dropped() -> None:
    picture = Image.new("RGB", (200, 100), "white")
    marked = np.asarray(overlay.mark(picture, Moment((0.0,), 4, 2, 2, (), ()), Area(0, 0.25, 1, 0.75)))
    assert 20 < marked[50, 49].max() < marked[50, 51].max() / 2


@pytest.mark.parametrize("name", ["sequence.mp4", "phone.mp4", "still.jpg", "variable-rate.mp4"])
def test_a_sheet_shows_every_moment(demo: VideoQA, tmp_path: Path, name: str) -> None:
    inspection = inspected(demo, SAMPLES / name, "What happens?")
    with Image.open(overlay.write(tmp_path / "sheet.png", [inspection])) as sheet:
        assert sheet.width <= overlay.SHEET_WIDTH
        assert len(set(sheet.convert("RGB").resize((64, 64)).get_flattened_data())) > 50


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_a_clip_lasts_as_long_as_the_video(demo: VideoQA, tmp_path: Path, suffix: str) -> None:
    inspection = inspected(demo, SAMPLES / "one.mp4", "What happens?")
    path = overlay.write(tmp_path / f"clip{suffix}", [inspection])
    if suffix == ".mp4":
        with av.open(str(path)) as container:
            times = [frame.time for frame in container.decode(video=0)]
        assert times[-1] == pytest.approx(inspection.video.duration, abs=0.05)
        # One more, so that the last one is seen as long as all others.
        assert len(times) == inspection.video.frame_count + 1
        return
    with Image.open(path) as clip:
        lasts = 0.0
        for number in range(clip.n_frames):
            clip.seek(number)
            clip.load()
            lasts += clip.info["duration"] / 1000
    assert lasts == pytest.approx(inspection.video.duration, abs=0.05)


def test_each_frame_of_a_clip_is_the_videos_own(demo: VideoQA, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "numbers.mp4", steady(40, 10), size=(320, 192))
    asked = Keep.parse("100%")
    inspection = inspected(demo, path, keep=asked, selector="uniform", sampling=Sampling(start=1.0, end=3.0))
    drawn = overlay.write(tmp_path / "clip.mp4", [inspection])
    scale = overlay.CLIP_SIDE[".mp4"] / 320
    with av.open(str(drawn)) as container:
        for number, frame in zip(range(10, 31), container.decode(video=0), strict=False):
            picture = frame.to_ndarray(format="rgb24")[overlay.GAP :, overlay.GAP :]
            row, columns = round(0.8 * 192 * scale), [round((2 * bit + 1) / 16 * 320 * scale) for bit in range(8)]
            # Where no frame of a cell runs.
            bits = [np.median(picture[row - 20 : row + 20, at - 9 : at + 9]) > 128 for at in columns]
            assert sum(1 << bit for bit, lit in enumerate(bits) if lit) == number
            assert frame.time == pytest.approx((number - 10) / 10, abs=0.01)


def test_frames_read_again_are_those_at_the_times(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "numbers.mp4", [0.0, 0.1, 0.35, 0.4, 1.0, 1.7])
    pictures = list(video.frames_at(path, [0.1, 0.4, 1.7]))
    assert [picture.shape for picture in pictures] == [(3, 96, 160)] * 3
    for picture, number in zip(pictures, (1, 3, 5), strict=True):
        expected = torch.from_numpy(numbered_frame(number)).permute(2, 0, 1).float()
        assert (picture.float() - expected).abs().mean() < 12
    assert video.times(path, 0.1, 1.0) == pytest.approx([0.1, 0.35, 0.4, 1.0])
    assert video.times(path, 0.0, 1.7, fps=2) == pytest.approx([0.0, 0.4, 1.0, 1.7])


@pytest.mark.parametrize("name", ["drawn.png", "drawn.mp4", "page.html"])
def test_a_video_that_was_replaced_since_is_not_drawn(demo: VideoQA, tmp_path: Path, name: str) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(SAMPLES / "one.mp4", clip)
    inspection = inspected(demo, clip)
    write = (lambda path, seen: page.write(path, seen)) if name == "page.html" else overlay.write
    assert write(tmp_path / name, [inspection]).stat().st_size > 1000
    (tmp_path / name).unlink()
    shutil.copy(SAMPLES / "sequence.mp4", clip)
    with pytest.raises(VideoError, match=r"clip\.mp4: the video has changed"):
        write(tmp_path / name, [inspection])
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_video_that_was_replaced_while_it_was_read_is_not_drawn(
    demo: VideoQA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, other = tmp_path / "clip.mp4", tmp_path / "other.mp4"
    shutil.copy(SAMPLES / "one.mp4", clip)
    shutil.copy(SAMPLES / "sequence.mp4", other)

    fit = demo.backend.fit

    def replace(frame: torch.Tensor, *about: Any) -> torch.Tensor:
        if other.exists():
            other.replace(clip)
        return fit(frame, *about)

    monkeypatch.setattr(demo.backend, "fit", replace)
    watched = demo.watch(clip, AskOptions())
    inspection = demo.inspect(demo.choose(watched, None, AskOptions()))
    with pytest.raises(VideoError, match="has changed"):
        overlay.write(tmp_path / "drawn.png", [inspection])


def test_no_question_is_a_selection_too(demo: VideoQA) -> None:
    inspection = inspected(demo, SAMPLES / "one.mp4")
    assert inspection.question is None and inspection.selection.important == 0
    assert set(inspection.signals) == {"saliency", "score", "distance"}


def test_the_question_is_relevant_where_it_is_answered(demo: VideoQA) -> None:
    asked = inspected(demo, SAMPLES / "sequence.mp4", "Is there a bicycle?")
    means = [sum(values) / len(values) for values in asked.signals["relevance"].moments]
    assert means.index(max(means)) == 10
    assert len(means) == len(asked.moments) and len(asked.signals["score"].moments[0]) == 64


def test_the_legend_names_only_what_is_drawn(demo: VideoQA) -> None:
    asked = inspected(demo, SAMPLES / "two.mp4", "What moves down?", keep="10%")
    assert [kind for kind, _ in overlay.marks([asked])] == ["question", "coverage", "here", "dropped"]
    # Without a question there is nothing to tell apart, and all that is kept has one mark.
    for selector in ("flashvlm", "paper"):
        unasked = inspected(demo, SAMPLES / "two.mp4", keep="10%", selector=selector)
        assert [kind for kind, _ in overlay.marks([unasked])] == ["kept", "here", "dropped"]


def test_class_tokens_have_no_cell(cropping: VideoQA, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", steady(4, 2), picture=wandering)
    inspection = inspected(cropping, path, keep=Keep.parse("100%"), sampling=Sampling(frames=4))
    assert all(len(moment.kept) == 4 and moment.class_token is not None for moment in inspection.moments)
    assert [len(values) for values in inspection.signals["saliency"].moments] == [4] * 4
    assert ("class", "the token of the whole frame, kept") in overlay.marks([inspection])
    overlay.write(tmp_path / "sheet.png", [inspection])


def test_every_cell_has_a_kept_one_that_stands_for_it(cropping: VideoQA, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", steady(4, 2), picture=wandering)
    options = AskOptions(keep=Keep(count=3), sampling=Sampling(frames=4))
    choice = cropping.choose([cropping.watch(path, options)] * 2, None, options)
    inspection = cropping.inspect(choice)
    cells = [cell for moment in inspection.moments for cell in moment.nearest]
    # Four moments of four cells in each of two videos.
    assert len(cells) == 32 and len(set(cells)) <= 3
    assert [moment.first for moment in inspection.moments] == list(range(0, 32, 4))
    kept = {moment.first + 2 * row + column for moment in inspection.moments for row, column in moment.kept}
    kept |= {-1 - moment.first for moment in inspection.moments if moment.class_token is not None}
    assert set(cells) <= kept and all(cells[cell] == cell for cell in kept if cell >= 0)


def test_questions_in_any_writing_are_drawn(demo: VideoQA, tmp_path: Path) -> None:
    inspection = inspected(demo, SAMPLES / "still.jpg", "Ça va? 中文 \U0001f600 " + "w" * 300)
    assert overlay.write(tmp_path / "sheet.png", [inspection]).stat().st_size > 1000


def test_the_command_line_draws_and_prints_the_answer_alone(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "what was kept.png"
    assert main(["ask", str(SAMPLES / "still.jpg"), "What is there?", "--overlay", str(path), *DEMO]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert "what was kept.png" in printed.err
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
    assert [file.name for file in tmp_path.iterdir()] == ["what was kept.png"]


def test_inspect_compares_selectors(capsys: pytest.CaptureFixture[str]) -> None:
    compare = ["inspect", str(SAMPLES / "two.mp4"), "What moves down?", "--compare", "flashvlm,paper,uniform", *DEMO]
    assert main(compare) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split() and line.split()[0] in ("flashvlm", "paper", "uniform")]
    assert [row[:2] for row in rows] == [["flashvlm", "48"], ["paper", "48"], ["uniform", "48"]]
    assert main([*compare, "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert [one["selection"]["selector"] for one in seen] == ["flashvlm", "paper", "uniform"]
    assert all(sum(len(moment["kept"]) for moment in one["moments"]) == 48 for one in seen)
    assert set(seen[0]["signals"]) == {"saliency", "relevance", "score", "distance"}
    assert "score" not in seen[2]["signals"] and "nearest" not in seen[0]["moments"][0]
    assert seen[0]["area"] == {"top": 0.0, "left": 0.0, "bottom": 1.0, "right": 1.0}


def test_one_selector_and_several_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    compare = ["inspect", str(SAMPLES / "two.mp4"), "--compare", "flashvlm,paper", "--selector", "uniform", *DEMO]
    assert main(compare) == 2
    assert capsys.readouterr().err == "flashvlm: Give --selector or --compare, not both.\n"


def test_without_a_question_nothing_is_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(SAMPLES / "two.mp4"), "--compare", "flashvlm,paper", *DEMO]) == 0
    said = capsys.readouterr().out
    assert "for the question" not in said and re.search(r"^paper +48 +0\.\d{3} ", said, re.M)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--overlay", "out.bmp"], 2, ".png, .gif, .webp, .mp4"),
        (["--overlay", "out"], 2, ".png"),
        (["--overlay", ""], 2, "not ''"),
        (["--report", "out.pdf"], 2, ".html"),
        (["--overlay", "no/such/folder/out.png"], 1, "no folder"),
        (["--report", "no/such/folder/out.html"], 1, "no folder"),
        (["--report", "folder.html"], 1, "folder"),
        (["--overlay", "clip.mp4"], 2, "the video itself"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "inspect"])
def test_what_cannot_be_written_is_told_before_a_model_is_loaded(
    tmp_path, monkeypatch, capsys, command, arguments, code, said
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    write_clip(tmp_path / "clip.mp4", steady(3))
    before = (tmp_path / "clip.mp4").read_bytes()
    assert main([command, "clip.mp4", "What?", "--model", "no/such-model", *arguments]) == code
    printed = capsys.readouterr()
    assert said in printed.err and "model" not in printed.err and printed.err.count("\n") == 1
    assert (tmp_path / "clip.mp4").read_bytes() == before


def test_a_drawing_that_fails_leaves_what_was_there(demo: VideoQA, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"before")
    inspection = inspected(demo, SAMPLES / "still.jpg")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        overlay.write(path, [inspection])
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UsageError):
        overlay.write(SAMPLES / "one.mp4", [inspected(demo, SAMPLES / "one.mp4")])


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_long_clip_is_thinned_and_lasts_as_long(demo: VideoQA, tmp_path: Path, monkeypatch, suffix: str) -> None:
    monkeypatch.setitem(overlay.MOST_FRAMES, suffix, 12)
    inspection = inspected(demo, SAMPLES / "one.mp4")
    path = overlay.write(tmp_path / f"clip{suffix}", [inspection])
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) in (12, 13)
    assert times[-1] == pytest.approx(inspection.video.duration, rel=0.1)


def test_many_selections_stand_in_rows(demo: VideoQA, tmp_path: Path) -> None:
    sizes = []
    for count in (3, 7):
        path = overlay.write(tmp_path / f"{count}.webp", count * [inspected(demo, SAMPLES / "still.jpg")])
        with Image.open(path) as clip:
            sizes.append(clip.size)
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > 2 * sizes[0][1]


def test_text_on_a_gif_has_no_tint(demo: VideoQA, tmp_path: Path) -> None:
    asked = inspected(demo, SAMPLES / "one.mp4", "What happens?")
    with Image.open(overlay.write(tmp_path / "clip.gif", [asked])) as clip:
        got = np.asarray(clip.convert("RGB")).reshape(-1, 3)
    for colour in (overlay.GROUND, overlay.SWATCHES["dropped"], overlay.COVERAGE):
        assert np.abs(got - np.array(ImageColor.getrgb(colour))).max(1).min() <= 2
