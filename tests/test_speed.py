"""What makes it fast changes nothing: the encoder against transformers', and what `flashvlm bench speed` reports."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, noise, tiny_video_llava
from typer.testing import CliRunner, Result

from flashvlm import VideoQA
from flashvlm.bench.footage import Footage, film, pictures
from flashvlm.bench.speed import Settings, SpeedRun, their_encoding
from flashvlm.encode import encode, repeats
from flashvlm.errors import UsageError
from flashvlm.options import ENCODES, LOOKS, AskOptions, Sampling
from flashvlm.pipeline import Decoded
from flashvlm.report import VideoFacts
from flashvlm.video import Clip
from flashvlm_cli.app import app

# Both round where the other does not: so far apart, as a share of the tokens' length, may they be.
APART = {"float32": 1e-5, "bfloat16": 2e-2}


def decoded(frames: torch.Tensor, **options: str) -> Decoded:
    facts = VideoFacts("noise", frames.shape[3], frames.shape[2], len(frames), 2.0, len(frames) / 2)
    return Decoded(
        Clip(facts, frames, tuple(number / 2 for number in range(len(frames))), 0.5),
        None,
        0.0,
        AskOptions(**{"encode": "all", **options}),
    )


@pytest.mark.parametrize("dtype", APART)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("height, width", [(112, 168), (140, 196)], ids=["even", "odd"])
def test_the_encoder_gives_the_tokens_of_transformers(
    family: str, dtype: str, height: int, width: int, tmp_path: Path
) -> None:
    backend = VideoQA.from_pretrained(FAMILIES[family](tmp_path), device="cpu", dtype=dtype).backend
    frames = noise(7, *backend.frame_size(height, width, AskOptions()))
    theirs = their_encoding(backend, decoded(frames)).tokens.float()
    ours = encode(backend, frames)
    assert ours.tokens.dtype == getattr(torch, dtype)
    assert (ours.tokens.float() - theirs).norm() < APART[dtype] * theirs.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_how_many_groups_are_encoded_at_once_changes_nothing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = VideoQA.from_pretrained(FAMILIES[family](tmp_path), device="cpu", dtype="float32").backend
    frames = noise(8, *backend.frame_size(140, 196, AskOptions()))
    found = []
    for cells in (1, 10**6):
        monkeypatch.setattr("flashvlm.encode.CELLS_AT_ONCE", {True: cells, False: cells})
        found.append(encode(backend, frames))
    torch.testing.assert_close(found[0].tokens, found[1].tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0].saliency, found[1].saliency, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_how_weights_are_laid_out_changes_nothing(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = FAMILIES[family](tmp_path), []
    for free in (None, 0):
        # Where memory is short, weights stay as they are.
        monkeypatch.setattr("flashvlm.backends.packing.free_memory", lambda device, free=free: free)
        backend = VideoQA.from_pretrained(folder, device="cpu", dtype="bfloat16").backend
        frames = noise(6, *backend.frame_size(140, 196, AskOptions()))
        found.append(encode(backend, frames))
    torch.testing.assert_close(found[0].tokens, found[1].tokens)
    torch.testing.assert_close(found[0].saliency, found[1].saliency)


def speed(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "speed", "--repeat", "1", "--max-new-tokens", "3", *arguments])


def test_every_budget_is_measured_against_transformers_and_against_all_tokens() -> None:
    said = speed("--frames", "4", "--size", "280x196", "--seconds", "2", "--keep", "25%,10%", "--json")
    assert said.exit_code == 0, said.output
    table = json.loads(said.stdout)
    assert [(row["encoder"], row["keep"]) for row in table["rows"]] == [
        ("transformers", "100%"), ("flashvlm", "100%"), ("flashvlm", "25%"), ("flashvlm", "10%"),
    ]  # fmt: skip
    assert [row["tokens"] for row in table["rows"]] == [108, 108, 27, 11]
    assert (table["video"]["width"], table["video"]["height"], table["frames"]) == (280, 196, 4)
    for row in table["rows"]:
        seconds = row["seconds"]
        first = sum(seconds[stage] for stage in ("decode", "encode", "select", "prefill"))
        assert seconds["time_to_first_token"] == pytest.approx(first, rel=1e-6)
    theirs, ours = table["rows"][0], table["rows"][3]
    assert theirs["first_ratio"] == 1
    expected = theirs["seconds"]["prefill"] / ours["seconds"]["prefill"]
    assert ours["prefill_ratio"] == pytest.approx(expected)


def test_several_dtypes_are_compared_with_the_first() -> None:
    clip = ("--frames", "4", "--size", "112x112", "--seconds", "2", "--keep", "10%", "--dtype", "float32,int8")
    table = json.loads(speed(*clip, "--json").stdout)
    assert [(row["dtype"], row["encoder"], row["keep"]) for row in table["rows"]] == [
        ("float32", "transformers", "100%"), ("float32", "flashvlm", "100%"), ("float32", "flashvlm", "10%"),
        ("int8", "flashvlm", "100%"), ("int8", "flashvlm", "10%"),
    ]  # fmt: skip
    theirs, one, other = (table["rows"][number] for number in (0, 2, 4))
    assert other["same_ratios"]["encode"] == pytest.approx(one["seconds"]["encode"] / other["seconds"]["encode"])
    assert other["encode_ratio"] == pytest.approx(theirs["seconds"]["encode"] / other["seconds"]["encode"])
    assert "times less than the same in float32" in speed(*clip, "--no-memory").stdout


def test_the_table_of_a_video_of_ones_own_names_it(tmp_path: Path) -> None:
    clip = film(Footage("still", 112, 112, 2.0, 8), tmp_path / "mine.mp4")
    said = speed(str(clip), "--frames", "4", "--no-memory")
    assert said.exit_code == 0, said.output
    assert "mine.mp4" in said.stdout and "transformers" in said.stdout


def test_a_clip_is_measured_as_ask_looks_at_it() -> None:
    said = speed("--size", "112x112", "--frames", "4", "--min-pixels", "784", "--selector", "uniform", "--json")
    table = json.loads(said.stdout)
    assert (table["cells"], table["settings"]["selector"]) == ([4, 4], "uniform")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "big"], "--size takes width and height"),
        (["--size", "57x57"], "even sides"),
        (["--size", "100000x100000"], "even sides of 56 to 8,192 pixels"),
        (["--clip", "other"], "moving, still, screen"),
        (["--keep", "0%"], "`keep` must be more than 0"),
        (["--layers", "2"], "--layers goes with --random-weights"),
        (["--random-weights", "gpt"], "qwen2-vl-2b"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str) -> None:
    said = speed(*arguments)
    assert said.exit_code != 0
    assert isinstance(said.exception, UsageError) and message in str(said.exception)


@pytest.mark.parametrize("kind, changing", [("moving", 1.0), ("still", 0.2), ("screen", 0.03)])
def test_footage_changes_as_much_as_its_kind_says(kind: str, changing: float) -> None:
    shown = list(pictures(Footage(kind, 112, 112, 24.0, 4)))
    changed = [not np.array_equal(one, other) for one, other in pairwise(shown)]
    assert np.mean(changed) == pytest.approx(changing, abs=0.03)


def test_rounds_are_medians_and_warm_up_is_thrown_away(tmp_path: Path) -> None:
    qa = VideoQA.from_pretrained("demo", device="cpu", dtype="float32")
    options = AskOptions(sampling=Sampling(frames=2), max_new_tokens=2)
    run = SpeedRun(qa, replace(Settings(), options=options, repeats=3), Footage("moving", 112, 112, 1.0, 8), False)
    assert len(list(run.measure())) == run.steps == 12
    row = run.table()["rows"][1]
    assert len(row["runs"]) == 3
    assert row["seconds"]["encode"] == sorted(one["encode"] for one in row["runs"])[1]


def sources(frames: torch.Tensor, size: int) -> torch.Tensor:
    return torch.tensor(list(repeats(frames.split(size))))


def shown(count: int, side: int = 224) -> torch.Tensor:
    """(count, 3, side, side) frames of the same picture."""
    return noise(1, side, side).expand(count, -1, -1, -1).clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_moment_that_looks_like_an_earlier_one_has_its_tokens(family: str, tmp_path: Path) -> None:
    backend = VideoQA.from_pretrained(FAMILIES[family](tmp_path), device="cpu", dtype="float32").backend
    size = backend.frames_per_group
    one, other = noise(2, *backend.frame_size(112, 168, AskOptions()))
    frames = torch.stack([picture for picture in (one, one, other, one, other, one) for _ in range(size)])
    every = encode(backend, frames)
    changed = VideoQA(backend, family).encode(decoded(frames, encode="changed")).encoded
    assert changed.sources.tolist() == [0, 0, 2, 0, 2, 0] and every.sources is None
    torch.testing.assert_close(changed.tokens, every.tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(changed.saliency, every.saliency, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("which", ENCODES)
def test_tokens_are_the_same_if_frames_come_one_by_one(
    demo: VideoQA, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    clip = Path(__file__).parent.parent / "samples" / "sequence.mp4"
    options = AskOptions(sampling=Sampling(frames=23), encode=which)
    at_once = demo.watch(clip, options)
    # Less than a single frame.
    monkeypatch.setattr("flashvlm.video.AHEAD", 1)
    one_by_one = demo.decode(clip, options)
    assert not isinstance(one_by_one.clip.frames, torch.Tensor)
    seen = demo.encode(one_by_one)
    assert seen.decode_seconds > one_by_one.seconds
    assert torch.equal(seen.encoded.tokens, at_once.encoded.tokens)
    assert torch.equal(seen.encoded.saliency, at_once.encoded.saliency)
    assert seen.encoded.timestamps == at_once.encoded.timestamps
    twice = demo.watch(clip, options, look="twice")
    monkeypatch.undo()
    assert torch.equal(twice.frames, demo.watch(clip, options, look="twice").frames)


def test_noise_of_a_codec_or_a_camera_is_no_change() -> None:
    grain = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 12
    frames = (shown(8).float() * 0.5 + 64 + grain).clamp(0, 255).to(torch.uint8)
    assert sources(frames, 2).tolist() == [0] * 4


def test_a_small_thing_that_moves_is_a_change() -> None:
    frames = shown(8) // 4 + 96
    for number, frame in enumerate(frames):
        left = 40 + 3 * (number // 2)
        frame[:, 100:106, left : left + 6] = 255
    assert sources(frames, 2).tolist() == [0, 1, 2, 3]


def test_what_changes_slowly_is_a_change_in_the_end() -> None:
    frames = torch.stack([torch.full((3, 56, 56), 100 + 4 * (number // 2), dtype=torch.uint8) for number in range(16)])
    found = sources(frames, 2).tolist()
    # 4 grey levels a moment, and 14 are a change.
    assert found == [0, 0, 0, 0, 4, 4, 4, 4]


def test_a_clip_in_which_nothing_happens_is_encoded_once_and_says_so(tmp_path: Path) -> None:
    clip = film(Footage("screen", 224, 224, 6.0, 8, key_every=5), tmp_path / "still.mp4")
    qa = VideoQA.from_pretrained("demo", device="cpu", dtype="float32")
    moments = {mode: qa.ask(clip, "What happens?", encode=mode).moments for mode in ENCODES}
    assert [moment.like for moment in moments["changed"]] == [None, 0, 0, 0, 0, 0]
    assert [moment.like for moment in moments["all"]] == [None] * 6
    said = CliRunner().invoke(app, ["ask", str(clip), "What happens?", "--model", "demo"])
    assert "1 encoded, 5 like an earlier one" in said.stderr


def test_which_moments_are_encoded_is_one_of_two() -> None:
    with pytest.raises(UsageError, match="`encode` is one of changed, all, not 'some'"):
        AskOptions(encode="some")
    with pytest.raises(UsageError, match="`seek` is one of fast, exact, not 'slow'"):
        AskOptions(seek="slow")


def test_a_small_frame_has_as_much_saliency_as_a_full_one(demo: VideoQA) -> None:
    clip = Path(__file__).parent.parent / "samples" / "sequence.mp4"
    once, twice = (demo.watch(clip, AskOptions(look=look)).encoded for look in ("once", "twice"))
    sums = [seen.saliency.view(seen.groups, -1).sum(1) for seen in (once, twice)]
    assert torch.allclose(sums[0], sums[1], rtol=0.02)


@pytest.mark.parametrize("count", [19, 20])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_looking_twice_has_full_size_for_what_the_question_asks_about_and_small_for_the_rest(
    family: str, count: int, tmp_path: Path
) -> None:
    qa = VideoQA.from_pretrained(FAMILIES[family](tmp_path), device="cpu", dtype="float32")
    frames = noise(count, 168, 168)
    seen = {look: qa.encode(decoded(frames, look=look)) for look in LOOKS}
    watched = qa.look_again(seen["twice"], "What happens?", AskOptions())
    encoded, full = watched.encoded, seen["once"].encoded
    assert (encoded.groups, encoded.height, encoded.width) == (10, 6, 6)
    # Four of ten moments are looked at again, the first and the last among them.
    assert encoded.small.sum() == 6 and not encoded.small[[0, -1]].any()
    small = torch.nn.functional.interpolate(frames, size=(84, 84), mode="bicubic", antialias=True)
    tokens = encode(qa.backend, small).tokens.view(10, 3, 3, -1)
    ours, theirs = encoded.tokens.view(10, 6, 6, -1), full.tokens.view(10, 6, 6, -1)
    for moment, is_small in enumerate(encoded.small.tolist()):
        if is_small:
            # A small frame's token lies on the two by two cells that it stands for.
            for y, x in ((0, 0), (1, 1), (4, 5)):
                torch.testing.assert_close(ours[moment, y, x], tokens[moment, y // 2, x // 2])
        else:
            torch.testing.assert_close(ours[moment], theirs[moment], atol=1e-4, rtol=1e-4)


def test_what_looks_like_a_moment_seen_again_is_seen_again_too() -> None:
    qa = VideoQA.from_pretrained("demo", device="cpu", dtype="float32")
    frames = noise(5, 112, 112).repeat_interleave(4, 0)
    watched = qa.encode(decoded(frames, encode="changed", look="twice"))
    assert watched.encoded.sources.tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    encoded = qa.look_again(watched, "What happens?", AskOptions()).encoded
    # Four of ten moments are looked at again, and so are those that look like them.
    first, second = encoded.small.view(5, 2).unbind(1)
    assert torch.equal(first, second) and int(first.sum()) == 1 and not first[[0, -1]].any()


def test_an_answer_after_two_looks_says_so(tmp_path: Path) -> None:
    clip = film(Footage("moving", 224, 224, 5.0, 8), tmp_path / "clip.mp4")
    asked = ["ask", str(clip), "What happens?", "--model", "demo", "--look", "twice"]
    said = CliRunner().invoke(app, [*asked, "--report", str(tmp_path / "report.html")])
    assert said.exit_code == 0 and "3 at full size, 2 small" in said.stderr
    assert (tmp_path / "report.html").read_text().count(r"\u00b7 small") == 2
    said = CliRunner().invoke(app, ["ask", str(clip), "What happens?", "--model", "demo", "--look", "twice", "--json"])
    assert [moment["small"] for moment in json.loads(said.stdout)["moments"]].count(False) == 3


def test_a_model_of_one_size_looks_once(tmp_path: Path) -> None:
    qa = VideoQA.from_pretrained(tiny_video_llava(tmp_path), device="cpu", dtype="float32")
    with pytest.raises(UsageError, match="frames of any size"):
        qa.encode(decoded(noise(4, 28, 28), look="twice"))
