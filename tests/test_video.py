import os
import random
import subprocess
import sys
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from clips import number_of, numbered_frame, steady, write_clip, write_sound, write_trimmed, write_without_frame
from PIL import Image

from flashvlm import video
from flashvlm.errors import UsageError, VideoError
from flashvlm.options import Sampling
from flashvlm.samples import samples_dir
from flashvlm.video import choose_frames, decode, frames_at, near_keys
from flashvlm.video.reader import InexactError
from flashvlm.video.with_decord import DecordReader

OPEN_GROUPS = {"x265-params": "log-level=none:scenecut=0:open-gop=1:bframes=4"}
CLOSED_GROUPS = {"x265-params": "log-level=none:scenecut=0:open-gop=0:bframes=4"}
# What decord reads exactly by itself.
KINDS = {
    "h264.mp4": {"codec": "libx264"},
    "h264.mov": {"codec": "libx264"},
    "h264.mkv": {"codec": "libx264"},
    "h264-open.mp4": {"codec": "libx264", "options": {"x264-params": "open-gop=1"}},
    "h264-fragmented.mp4": {"codec": "libx264", "mux_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc-open.mp4": {"codec": "libx265", "options": OPEN_GROUPS},
    "hevc-open.mkv": {"codec": "libx265", "options": OPEN_GROUPS},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1"},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4"},
}
# What only PyAV does.
PYAV_KINDS = {
    "hevc-closed.mp4": {"codec": "libx265", "options": CLOSED_GROUPS},
    "h264.ts": {"codec": "libx264"},
    "h264.avi": {"codec": "libx264"},
    "mpeg4-reordered.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "live.webm": {"codec": "libvpx-vp9", "mux_options": {"live": "1"}},
}


@pytest.fixture
def no_pyav(monkeypatch):
    """Nothing but decord can read what is read after this is asked for."""
    return lambda: [monkeypatch.setattr(video, name, unable) for name in ("ForwardReader", "PyAVReader")]


def unable(source):
    raise InexactError


def unchanged(frame, frames=1):
    return frame


def assert_frames_match_their_times(clip, fps=25):
    assert [number_of(frame) for frame in clip.frames] == [round(time * fps) for time in clip.timestamps]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(frames=60), Sampling(frames=7), Sampling(start=1.4), Sampling(fps=5, start=0.5, end=1.96)],
    ids=["all", "sparse", "from the middle", "part"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_their_timestamps(tmp_path, no_pyav, kind, sampling):
    path = write_clip(tmp_path / kind, steady(60), **KINDS[kind])
    no_pyav()
    clip = decode(path, sampling, unchanged)
    assert_frames_match_their_times(clip)
    assert (clip.facts.frame_count, clip.facts.width, clip.facts.height) == (60, 160, 96)
    assert clip.facts.fps == pytest.approx(25) and clip.facts.duration == pytest.approx(2.4)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(frames=60), Sampling(frames=7), Sampling(start=1.4), Sampling(fps=5, start=0.5, end=1.96)],
    ids=["all", "sparse", "from the middle", "part"],
)
@pytest.mark.parametrize("kind", [*KINDS, *PYAV_KINDS])
def test_one_pass_gives_the_frames_that_exact_seeking_gives(tmp_path, kind, sampling):
    path = write_clip(tmp_path / kind, steady(60), **{**KINDS, **PYAV_KINDS}[kind])
    clip, exact = decode(path, sampling, unchanged, "fast"), decode(path, sampling, unchanged)
    assert_frames_match_their_times(clip)
    assert clip.timestamps == pytest.approx(exact.timestamps, abs=1e-4)
    assert clip.facts == exact.facts


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_one_pass_gives_the_very_pixels(tmp_path, pix_fmt, rotation):
    path = write_clip(tmp_path / "clip.mp4", steady(30), pix_fmt=pix_fmt, rotation=rotation)
    clip, exact = (decode(path, Sampling(frames=10), unchanged, seek) for seek in ("fast", "exact"))
    assert_frames_match_their_times(clip)
    assert torch.equal(clip.frames, exact.frames)


@pytest.mark.parametrize("kind", ["h264.mp4", "hevc-open.mp4", "vp9.webm", "av1.mp4", "mpeg4.avi"])
def test_key_frames_serve_where_there_are_enough_and_say_when_they_are(tmp_path, kind):
    path = write_clip(tmp_path / kind, steady(100), **KINDS[kind], key_every=20)
    clip = decode(path, Sampling(frames=4), unchanged, "fast")
    assert_frames_match_their_times(clip)
    # Of 0, 1.32, 2.64 and 3.96 s.
    assert clip.timestamps == pytest.approx((0.0, 1.6, 2.4, 3.2))
    assert decode(path, Sampling(frames=4), unchanged).timestamps == pytest.approx((0.0, 1.32, 2.64, 3.96))


def test_where_key_frames_are_too_few_the_frames_are_the_same(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", steady(100), key_every=50)
    assert decode(path, Sampling(frames=4), unchanged, "fast").timestamps == pytest.approx((0.0, 1.32, 2.64, 3.96))


def test_key_frames_stand_for_no_frame_that_is_far_from_them():
    starts = steady(100, 1.0)
    assert near_keys(starts, [0, 30, 60, 90], [0, 33, 66, 99]) == [0, 30, 60, 90]
    assert near_keys(starts, [0, 10, 20, 30], [0, 33, 66, 99]) is None
    assert near_keys(starts, [0, 50], [0, 33, 66, 99]) is None
    assert near_keys(starts, list(range(100)), [50]) is None


@pytest.mark.parametrize("kind", PYAV_KINDS)
def test_pyav_reads_what_decord_cannot(tmp_path, kind):
    path = write_clip(tmp_path / kind, steady(60), **PYAV_KINDS[kind])
    for sampling in (Sampling(frames=60), Sampling(frames=7, start=1)):
        clip = decode(path, sampling, unchanged)
        assert_frames_match_their_times(clip)
        assert clip.facts.frame_count == 60 and clip.facts.duration == pytest.approx(2.4)


def test_a_stream_without_a_container_is_told_to_lack_times(tmp_path):
    path = write_clip(tmp_path / "raw.h264", steady(20))
    for seek in ("fast", "exact"):
        with pytest.raises(VideoError, match="this file has no timestamps"):
            decode(path, Sampling(), unchanged, seek)


@pytest.mark.parametrize("sampling", [Sampling(frames=50), Sampling(frames=5), Sampling(start=1)])
def test_frames_hidden_by_an_edit_list_stay_hidden(tmp_path, no_pyav, sampling):
    whole = write_clip(tmp_path / "whole.mp4", steady(90), key_every=20)
    path = write_trimmed(tmp_path / "trimmed.mp4", whole, start=1.2)
    no_pyav()
    clip = decode(path, sampling, unchanged)
    assert [number_of(frame) for frame in clip.frames] == [30 + round(time * 25) for time in clip.timestamps]
    assert clip.facts.frame_count == 60 and clip.facts.duration == pytest.approx(2.4)


def test_frames_hidden_by_an_edit_list_stay_hidden_from_pyav(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", steady(90), key_every=20, **PYAV_KINDS["hevc-closed.mp4"])
    clip = decode(write_trimmed(tmp_path / "trimmed.mp4", whole, start=1.2), Sampling(frames=60), unchanged)
    assert [number_of(frame) for frame in clip.frames] == list(range(30, 90))
    assert clip.timestamps == pytest.approx(steady(60))


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_frames_are_upright(tmp_path, rotation, ending):
    path = write_clip(tmp_path / f"clip.{ending}", steady(8), rotation=rotation)
    clip = decode(path, Sampling(), unchanged)
    assert_frames_match_their_times(clip)
    assert clip.frames.shape == (4, 3, 96, 160) and (clip.facts.width, clip.facts.height) == (160, 96)
    assert clip.facts.rotation == rotation


def test_frames_that_pyav_reads_are_upright_too(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", steady(60), rotation=90, **PYAV_KINDS["hevc-closed.mp4"])
    clip = decode(path, Sampling(frames=60), unchanged)
    assert_frames_match_their_times(clip)
    assert clip.facts.rotation == 90


@pytest.mark.parametrize("codec, ending", [("libx264", "mp4"), ("libvpx-vp9", "webm")])
def test_odd_sizes(tmp_path, codec, ending):
    clip = decode(
        write_clip(tmp_path / f"clip.{ending}", steady(8), codec=codec, size=(321, 239)), Sampling(), unchanged
    )
    assert_frames_match_their_times(clip)
    assert clip.frames.shape == (4, 3, 239, 321)


@pytest.mark.parametrize("kind", ["h264.mp4", "h264.mkv", "vp9.webm", "av1.mp4", "mpeg4.avi"])
def test_a_video_of_one_frame(tmp_path, kind):
    clip = decode(write_clip(tmp_path / kind, [0], **KINDS[kind]), Sampling(), unchanged)
    assert clip.timestamps == (0.0,) and number_of(clip.frames[0]) == 0
    assert clip.facts.frame_count == 1


@pytest.mark.parametrize("kind", ["h264.mp4", "h264.mkv", "vp9.webm", "av1.mp4", "hevc-open.mp4"])
def test_a_variable_frame_rate_keeps_its_times(tmp_path, kind):
    times = [0, 0.04, 0.08, 2, 2.04, 5, 5.5, 9, 9.02, 10]
    path = write_clip(tmp_path / kind, times, **KINDS[kind])
    every = decode(path, Sampling(frames=10), unchanged)
    assert every.timestamps == pytest.approx(times, abs=1e-3)
    assert [number_of(frame) for frame in every.frames] == list(range(10))

    three = decode(path, Sampling(frames=3), unchanged)
    assert three.timestamps == pytest.approx([0, 5, 10], abs=1e-3)
    assert [number_of(frame) for frame in three.frames] == [0, 5, 9]


def test_time_counts_from_the_first_frame(tmp_path):
    path = write_clip(tmp_path / "late.mkv", [time + 3 for time in steady(25)])
    clip = decode(path, Sampling(frames=5), unchanged)
    assert_frames_match_their_times(clip)
    assert clip.facts.duration == pytest.approx(1)


def test_a_gif_is_a_video(tmp_path):
    first, *others = [Image.fromarray(numbered_frame(number)) for number in range(4)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=[100, 200, 300, 100])
    clip = decode(tmp_path / "a.gif", Sampling(), unchanged)
    assert clip.timestamps == pytest.approx([0, 0.1, 0.3, 0.6])
    assert [number_of(frame) for frame in clip.frames] == [0, 1, 2, 3]


def test_a_name_is_a_name_and_not_an_address(tmp_path, monkeypatch, no_pyav):
    write_clip(tmp_path / "plain.mp4", steady(8)).rename(tmp_path / "http:%03d.mp4")
    monkeypatch.chdir(tmp_path)
    no_pyav()
    assert len(decode("http:%03d.mp4", Sampling(), unchanged).frames) == 4


def test_frames_are_transformed_one_at_a_time_and_dropped(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", steady(50))
    seen = []

    def halve(frame, frames):
        assert frames == 20 and frame.shape == (3, 96, 160) and frame.dtype == torch.uint8
        assert sum(earlier() is not None for earlier in seen) <= 1
        seen.append(weakref.ref(frame))
        return frame[:, ::2, ::2].clone()

    clip = decode(path, Sampling(frames=20), halve)
    assert len(seen) == 20
    assert clip.frames.shape == (20, 3, 48, 80) and clip.frames.dtype == torch.uint8
    assert_frames_match_their_times(clip)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_still_picture_is_a_video_of_one_frame(tmp_path, ending):
    Image.fromarray(numbered_frame(5)).save(tmp_path / f"still.{ending}", quality=95)
    clip = decode(tmp_path / f"still.{ending}", Sampling(end=3), unchanged)
    assert clip.frames.shape == (1, 3, 96, 160) and number_of(clip.frames[0]) == 5
    assert clip.timestamps == (0.0,)
    facts = clip.facts
    assert (facts.width, facts.height, facts.frame_count, facts.fps, facts.duration) == (160, 96, 1, 0, 0)


def test_a_still_picture_has_no_later_part(tmp_path):
    Image.fromarray(numbered_frame(5)).save(tmp_path / "still.png")
    with pytest.raises(UsageError, match="still picture"):
        decode(tmp_path / "still.png", Sampling(start=1), unchanged)


@pytest.mark.parametrize("orientation, rotation", [(1, 0), (3, 180), (6, 90), (8, 270)])
def test_a_photo_is_turned_as_its_camera_was(tmp_path, orientation, rotation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(numbered_frame(9), rotation // 90)
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.jpg", quality=95, exif=exif)
    clip = decode(tmp_path / "photo.jpg", Sampling(), unchanged)
    assert number_of(clip.frames[0]) == 9
    assert (clip.facts.width, clip.facts.rotation) == (160, rotation)


def test_a_transparent_picture_lies_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decode(tmp_path / "clear.png", Sampling(), unchanged).frames.unique().tolist() == [255]


def test_a_grey_picture_of_16_bits_keeps_its_shades(tmp_path):
    shades = np.arange(256, dtype=np.uint16)[None].repeat(8, 0)
    Image.fromarray(shades * 257).save(tmp_path / "grey.png")
    seen = decode(tmp_path / "grey.png", Sampling(), unchanged).frames
    assert (seen[0] == torch.from_numpy(shades.astype(np.uint8))).all()


@pytest.mark.parametrize("seek", ["fast", "exact"])
@pytest.mark.parametrize("ending", ["webp", "png"])
def test_an_animated_picture_is_a_video(tmp_path, ending, seek):
    first, *others = [Image.fromarray(numbered_frame(number)) for number in range(6)]
    path, lengths = tmp_path / f"a.{ending}", [100, 200, 300, 100, 100, 400]
    first.save(path, save_all=True, append_images=others, duration=lengths, lossless=True)
    clip = decode(path, Sampling(), unchanged, seek)
    assert clip.timestamps == pytest.approx([0, 0.3, 0.6, 0.8])
    assert [number_of(frame) for frame in clip.frames] == [0, 2, 3, 5]
    facts = clip.facts
    assert (facts.frame_count, facts.fps, facts.duration) == (6, pytest.approx(5), pytest.approx(1.2))
    assert [number_of(frame) for frame in frames_at(path, clip.timestamps)] == [0, 2, 3, 5]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"cannot be read|cut short"):
        decode(path, Sampling(), unchanged, seek)


def test_an_animated_picture_is_turned_and_begins_where_it_says(tmp_path):
    first, *others = [Image.fromarray(numbered_frame(number)).rotate(90, expand=True) for number in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.webp"
    first.save(path, save_all=True, append_images=others, duration=100, lossless=True, exif=exif)
    clip = decode(path, Sampling(frames=3), unchanged)
    assert [number_of(frame) for frame in clip.frames] == [0, 1, 2] and clip.facts.rotation == 90
    assert clip.timestamps == (0.0, 0.1, 0.2)
    first, *others = [Image.fromarray(numbered_frame(number)) for number in range(3)]
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=100, default_image=True)
    assert [number_of(f) for f in decode(tmp_path / "a.png", Sampling(frames=3), unchanged).frames] == [1, 2]


def test_the_preview_in_a_photo_does_not_animate_it(tmp_path):
    photo, preview = (Image.fromarray(numbered_frame(5)).resize(size) for size in ((160, 96), (80, 48)))
    photo.save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[preview], quality=95)
    assert decode(tmp_path / "photo.jpg", Sampling(), unchanged).facts.duration == 0


def noise(count):
    return random.Random(count).randbytes(count)


def write_over(path, share_from, share_to, filling=noise):
    data = bytearray(path.read_bytes())
    start, end = round(len(data) * share_from), round(len(data) * share_to)
    data[start:end] = filling(end - start)
    path.write_bytes(data)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: round(path.stat().st_size * share)])


FRONT = {"mux_options": {"movflags": "faststart"}}  # the index before the pictures
BAD_FILES = {
    "missing.mp4": (lambda path: None, "no such file"),
    "folder.mp4": (lambda path: path.mkdir(), "a folder"),
    "empty.mp4": (lambda path: path.touch(), "empty"),
    "text.mp4": (lambda path: path.write_text("no video\n" * 99), "not a video"),
    "noise.mp4": (lambda path: path.write_bytes(noise(9999)), "not a video"),
    "sound.m4a": (write_sound, "no video"),
    "cut.mp4": (lambda path: cut(write_clip(path, steady(50)), 0.6), "cut short"),
    "cut-front.mp4": (lambda path: cut(write_clip(path, steady(50), **FRONT), 0.6), "cut short"),
    "cut-late.mp4": (lambda path: cut(write_clip(path, steady(50), **FRONT), 0.99), "cut short"),
    "cut.mkv": (lambda path: cut(write_clip(path, steady(50)), 0.6), "cut short"),
    "cut.webm": (lambda path: cut(write_clip(path, steady(50), codec="libvpx-vp9"), 0.6), "cut short"),
    "cut.avi": (lambda path: cut(write_clip(path, steady(50), codec="mpeg4"), 0.6), "cut short"),
    "damaged.mp4": (lambda path: write_over(write_clip(path, steady(50), **FRONT), 0.5, 0.8), "damaged"),
    "damaged.mkv": (lambda path: write_over(write_clip(path, steady(50), codec="libx265"), 0.5, 0.8), "damaged"),
    "zeros.mp4": (lambda path: write_over(write_clip(path, steady(50), **FRONT), 0.5, 0.8, bytes), "damaged"),
    "half.jpg": (lambda path: (Image.fromarray(numbered_frame(1)).save(path), cut(path, 0.5)), "damaged"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_cannot_be_read_is_one_sentence(tmp_path, capfd, name):
    write, problem = BAD_FILES[name]
    path = tmp_path / name
    write(path)
    capfd.readouterr()
    with pytest.raises(VideoError) as caught:
        decode(path, Sampling(frames=50), unchanged)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and problem in message
    assert "\n" not in message and message.count(". ") == 0
    assert capfd.readouterr() == ("", "")


def test_no_other_frame_stands_in_for_a_missing_one(tmp_path):
    options = {"x265-params": "log-level=none:scenecut=0:bframes=0"}
    whole = write_clip(tmp_path / "whole.mp4", steady(30), codec="libx265", key_every=60, options=options)
    path = write_without_frame(tmp_path / "hole.mp4", whole, 20)
    with pytest.raises(VideoError, match="damaged"):
        decode(path, Sampling(frames=30), unchanged)


@pytest.mark.parametrize("seek", ["fast", "exact"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_pyav_does_not_hand_out_another_frame_for_a_missing_one(tmp_path, codec, seek):
    options = {"x265-params": "log-level=none:scenecut=0:bframes=0"} if codec == "libx265" else {}
    whole = write_clip(tmp_path / "whole.mp4", steady(30), codec=codec, key_every=60, options=options)
    path = write_without_frame(tmp_path / "hole.ts", whole, 10)
    with pytest.raises(VideoError, match=r"0\.80 s"):
        decode(path, Sampling(frames=2, start=0.2, end=0.8), unchanged, seek)


def test_a_clip_that_is_damaged_here_and_there_is_not_answered_from(tmp_path):
    rng = random.Random(1)
    for sample in ("one.mp4", "mpeg4.mp4"):
        data = bytearray((samples_dir() / sample).read_bytes())
        for place in range(3000, len(data) - 3000, 400):
            data[place] = rng.randrange(256)
        (tmp_path / sample).write_bytes(data)
        with pytest.raises(VideoError, match="the video is damaged"):
            decode(tmp_path / sample, Sampling(), unchanged, "fast")


@pytest.fixture
def no_decord(monkeypatch):
    """decord reads nothing: all is read with PyAV."""
    monkeypatch.setattr(video, "DecordReader", unable)


def test_a_clip_that_decord_gives_up_on_is_read_anew(tmp_path, monkeypatch):
    path, read_some, tried = write_clip(tmp_path / "clip.mp4", steady(75)), DecordReader.read, []
    whole = decode(path, Sampling(), unchanged, "exact")

    def give_up(reader, chosen):
        tried.append(chosen)
        yield from read_some(reader, chosen[:2])
        raise InexactError

    monkeypatch.setattr(DecordReader, "read", give_up)
    read = decode(path, Sampling(), unchanged, "exact")
    assert len(tried) == 1 and read.timestamps == whole.timestamps and len(read.frames) == len(whole.frames)


@pytest.fixture
def read_as_encoded(monkeypatch):
    """Nothing more than three frames is read ahead."""
    monkeypatch.setattr(video, "AHEAD", 2 * 3 * 96 * 160)


@pytest.mark.parametrize("seek", ["exact", "fast"])
def test_many_frames_are_read_when_they_are_asked_for(tmp_path, read_as_encoded, seek):
    path, fitted = write_clip(tmp_path / "clip.mp4", steady(75)), []

    def counted(frame, frames):
        fitted.append(frames)
        return frame

    clip = decode(path, Sampling(frames=20), counted, seek)
    assert fitted == [20] * 3
    next(clip.frames)
    assert len(fitted) == 3
    assert len(list(clip.frames)) == 19 and fitted == [20] * 20
    again = decode(path, Sampling(frames=20), unchanged, seek)
    assert_frames_match_their_times(again)


def test_another_reader_reads_on_where_one_gives_up(tmp_path, monkeypatch, read_as_encoded):
    path, read_some = write_clip(tmp_path / "clip.mp4", steady(75)), DecordReader.read

    def give_up(reader, chosen):
        yield from read_some(reader, chosen[:7])
        raise InexactError

    monkeypatch.setattr(DecordReader, "read", give_up)
    clip = decode(path, Sampling(frames=20), unchanged)
    assert len(clip.timestamps) == 20
    assert_frames_match_their_times(clip)


def test_damage_in_frames_that_are_read_later_is_told(tmp_path, no_decord, read_as_encoded):
    path = tmp_path / "clip.mp4"
    damaged_at_a_fifth_second(path)
    with pytest.raises(VideoError, match="the video is damaged"):
        list(decode(path, Sampling(frames=60), unchanged, "fast").frames)


def damaged_at_a_fifth_second(path, between="0"):
    """Two groups of pictures of 30 frames, the sixth damaged; 25 frames a second, `between` B-frames."""
    write_clip(path, steady(60), key_every=30, picture=noisy, options={"bf": between, "x264-params": "b-adapt=0"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.pts * packet.time_base == Fraction("0.2"))
    place = packet.pos + packet.size // 2
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("seek", ["fast", "exact"])
def test_what_hangs_on_a_damaged_frame_is_damaged_too(tmp_path, no_decord, seek):
    path = damaged_at_a_fifth_second(tmp_path / "clip.mp4")
    # Up to the next key frame, that is; what comes before it and after is whole.
    for start, end in ((0, 0.16), (1.2, 2.36)):
        assert len(decode(path, Sampling(frames=4, start=start, end=end), unchanged, seek).frames) == 4
    with pytest.raises(VideoError, match=r"damaged; its frame at 0\.40 s"):
        decode(path, Sampling(frames=2, start=0.4, end=0.8), unchanged, seek)


@pytest.mark.parametrize("seek", ["fast", "exact"])
def test_what_hangs_on_a_damaged_frame_that_is_shown_later_is_damaged_too(tmp_path, no_decord, seek):
    # Frames 1 to 4 lie between those that they refer to, 0 and 5.
    path = damaged_at_a_fifth_second(tmp_path / "clip.mp4", between="4")
    with pytest.raises(VideoError, match=r"damaged; its frame at 0\.08 s"):
        decode(path, Sampling(frames=2, start=0.08, end=0.12), unchanged, seek)
    assert len(decode(path, Sampling(frames=2, start=1.28, end=1.32), unchanged, seek).frames) == 2


def test_damage_beside_what_was_looked_at_does_not_keep_a_clip_from_being_drawn(tmp_path, no_decord):
    path = damaged_at_a_fifth_second(tmp_path / "clip.mp4")
    assert len(list(frames_at(path, [0.0, 0.2, 0.4, 1.2]))) == 4


@pytest.mark.parametrize("width", [2, 4, 16, 24])
def test_very_narrow_pictures_are_what_they_are(tmp_path, width):
    path = write_clip(tmp_path / "narrow.mp4", steady(6), size=(width, 48), picture=lambda *_: stripes(width))
    clip = decode(path, Sampling(frames=2), unchanged)
    assert clip.frames.shape == (2, 3, 48, width)
    again = torch.stack(list(frames_at(path, clip.timestamps)))
    assert (clip.frames[0].permute(1, 2, 0).int() - torch.from_numpy(stripes(width)).int()).abs().float().mean() < 12
    assert torch.equal(again, clip.frames) and torch.equal(
        decode(path, Sampling(frames=2), unchanged, "fast").frames, again
    )


def stripes(width):
    """Red above, blue below."""
    picture = np.zeros((48, width, 3), np.uint8)
    picture[:24, :, 0] = picture[24:, :, 2] = 200
    return picture


def noisy(number, width, height):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_false_count_of_frames_does_not_end_the_process(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", steady(8))
    data = bytearray(path.read_bytes())
    counts = data.index(b"stts") + 8
    data[counts + 4 : counts + 8] = b"\xff\xff\xff\xf0"
    path.write_bytes(data)
    for seek in ("fast", "exact"):
        assert_frames_match_their_times(decode(path, Sampling(frames=8), unchanged, seek))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", steady(8))
    path.chmod(0)
    with pytest.raises(VideoError, match="permission"):
        decode(path, Sampling(), unchanged)


def test_decoding_is_silent(tmp_path, capfd):
    path = write_clip(tmp_path / "clip.mp4", steady(60), **KINDS["h264-open.mp4"])
    capfd.readouterr()
    decode(path, Sampling(start=1), unchanged)
    assert capfd.readouterr() == ("", "")


def test_importing_the_module_loads_neither_torch_nor_decord():
    check = "import sys, flashvlm.video; assert not {'torch', 'decord', 'av', 'PIL'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def times(count, fps=25.0):
    return steady(count, fps), count / fps


@pytest.mark.parametrize(
    "seconds, options, count",
    [
        (10, {}, 20),  # 2 a second
        (10, {"fps": 0.5}, 4),  # 5, and an even number
        (10, {"fps": 1.1}, 10),
        (1, {}, 4),  # never less than 4
        (100, {}, 64),  # never more than 64
        (100, {"max_frames": 7}, 6),
        (10, {"max_frames": 3}, 3),
        (10, {"max_frames": 1}, 1),
        (0.12, {}, 3),  # all there are
        (10, {"frames": 5}, 5),
        (10, {"frames": 90, "max_frames": 64}, 90),
        (1, {"frames": 90}, 25),
        (10, {"start": 4.0, "end": 9.0}, 10),
        (10, {"start": 9.0, "end": 99.0}, 4),
        (10, {"start": 5.0, "end": 5.01}, 1),
    ],
)
def test_how_many_frames_are_looked_at(seconds, options, count):
    chosen = choose_frames(*times(round(seconds * 25)), Sampling(**options))
    assert len(chosen) == count
    assert sorted(set(chosen)) == chosen


@pytest.mark.parametrize("frames", [2, 7, 16, 64])
def test_at_a_constant_rate_frames_are_placed_as_qwen_places_them(frames):
    chosen = choose_frames(*times(250), Sampling(frames=frames))
    exact = torch.linspace(0, 249, frames, dtype=torch.float64)
    assert (torch.tensor(chosen) - exact).abs().max() <= 0.5 + 1e-6
    assert (chosen[0], chosen[-1]) == (0, 249)


def test_a_part_begins_and_ends_where_it_was_asked_to():
    chosen = choose_frames(*times(250), Sampling(start=2.0, end=4.0, frames=5))
    assert [index / 25 for index in chosen] == [2.0, 2.48, 3.0, 3.48, 4.0]


def test_a_single_frame_is_taken_from_the_middle():
    assert choose_frames(*times(101), Sampling(frames=1)) == [50]


def test_a_part_between_two_frames_is_the_frame_on_screen():
    assert choose_frames([0, 10, 20], 30, Sampling(start=13, end=17)) == [1]


def test_a_frame_on_screen_for_long_is_looked_at_once():
    assert choose_frames([0, 0.1, 0.2, 9.8, 9.9, 10], 10.1, Sampling(frames=4)) == [0, 2, 3, 5]
    assert choose_frames([0, 0.1, 0.2, 9.8, 9.9, 10], 10.1, Sampling(frames=6)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("start", [2.0, 7.5])
def test_a_start_past_the_end_names_the_duration(start):
    with pytest.raises(UsageError, match=r"2\.00 s"):
        choose_frames(*times(50), Sampling(start=start))
