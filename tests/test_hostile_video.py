"""No file ends the process, hangs it, opens other files, or is shown in another way by another reader."""

import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from attack.seeds import FRAGMENTS
from clips import number_of, numbered_frame, steady, write_clip
from PIL import Image

from flashvlm.errors import VideoError
from flashvlm.options import Sampling
from flashvlm.video import Limits, decode, frames_at, times

SEEKS = ["fast", "exact"]


def unchanged(frame, frames=1):
    return frame


def numbers(path, seek, sampling=Sampling(frames=4), **settings):  # noqa: B008
    return [number_of(frame) for frame in decode(path, sampling, unchanged, seek, **settings).frames]


def write_killer(path):
    """A fragmented MP4 that ends the process which decord reads it in (std::bad_alloc)."""
    data = bytearray(write_clip(path, steady(16), mux_options=FRAGMENTS).read_bytes())
    place = -1
    for _ in range(11):
        place = data.index(b"tfdt", place + 1)
    data[place + 9] = 0x10
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("seek", SEEKS)
def test_a_file_that_ends_the_process_of_its_reader_is_an_error_of_that_file(tmp_path, seek):
    killer, clip = write_killer(tmp_path / "killer.mp4"), write_clip(tmp_path / "clip.mp4", steady(16))
    for _ in range(2):
        with pytest.raises(VideoError, match="damaged"):
            decode(killer, Sampling(), unchanged, seek)
        assert number_of(next(frames_at(killer, times(killer, 0.0, 0.1)))) == 0
        assert numbers(clip, seek) == [0, 5, 10, 15]


def test_a_process_that_is_gone_costs_nothing_but_itself(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", steady(16))
    assert numbers(clip, "exact") == [0, 5, 10, 15]
    for process in children():
        os.kill(process, signal.SIGKILL)
    assert numbers(clip, "exact") == numbers(clip, "exact") == [0, 5, 10, 15]


def children(of="self"):
    """The processes that a process has started."""
    tasks = f"/proc/{of}/task"
    listed = [Path(tasks, task, "children").read_text() for task in os.listdir(tasks)]
    return [int(process) for line in listed for process in line.split()]


def test_threads_may_read_at_the_same_time(tmp_path):
    clips = [write_clip(tmp_path / f"{n}.mp4", steady(30), picture=shifted(n * 40)) for n in range(4)]
    found = {}

    def read(clip):
        found[clip] = numbers(clip, "exact", Sampling(frames=3))

    threads = [threading.Thread(target=read, args=(clip,)) for clip in clips]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[clip] for clip in clips] == [[n * 40, n * 40 + 14, n * 40 + 29] for n in range(4)]


def shifted(by):
    return lambda number, width, height: numbered_frame(number + by, width, height)


SCRIPT = """
import os, signal, sys
import torch
from flashvlm.options import Sampling
from flashvlm.video import decode, with_decord

os.chdir(sys.argv[2])
os.rmdir(sys.argv[2])
read, with_decord.DecordReader.read = with_decord.DecordReader.read, lambda *about: used.append(1) or read(*about)
used = []
for turn in range(2):
    assert len(decode(sys.argv[1], Sampling(frames=4), lambda frame, frames: frame, "exact").frames) == 4
    if turn == 0 and not os.fork():
        decode(sys.argv[1], Sampling(frames=4), lambda frame, frames: frame, "exact")
        os._exit(0)
os.wait()
assert used == [1, 1], used
open(sys.argv[3], "w").write(str(os.getpid()))
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_process_of_decord_needs_nothing_of_its_parent_and_ends_with_it(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", steady(16))
    (tmp_path / "gone").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    asked = [sys.executable, str(tmp_path / "script.py"), str(clip), str(tmp_path / "gone"), str(tmp_path / "told")]
    # No guard in the script, no standard streams, no Ctrl-C, no folder, and a fork on the way.
    closed = ["sh", "-c", 'trap "" INT; exec "$@" 0<&- 1>&- 2>&-', "sh", *asked]
    with subprocess.Popen(closed) as script:
        wait_for(lambda: (tmp_path / "told").exists() or script.poll() is not None)
        started = children(script.pid)
        script.kill()
    assert len(started) == 1
    wait_for(lambda: not os.path.exists(f"/proc/{started[0]}"))


def wait_for(happened):
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("seek", SEEKS)
def test_an_unknown_codec_is_one_sentence(tmp_path, seek):
    clip = write_clip(tmp_path / "clip.mp4", steady(8))
    clip.write_bytes(clip.read_bytes().replace(b"avc1", b"zzzz"))
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>')
    with pytest.raises(VideoError, match="format of video that cannot be decoded"):
        decode(clip, Sampling(), unchanged, seek)
    with pytest.raises(VideoError, match="not a video"):
        decode(tmp_path / "drawing.svg", Sampling(), unchanged, seek)


OTHERS = {
    "endless.m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n",
    "list.mp4": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n",
    "concat.txt": "ffconcat version 1.0\nfile clip.ts\n",
    "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic"></MPD>',
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("seek", SEEKS)
@pytest.mark.parametrize("name", OTHERS)
def test_what_opens_other_files_is_no_video(tmp_path, name, seek):
    write_clip(tmp_path / "clip.ts", steady(25))
    (tmp_path / name).write_text(OTHERS[name])
    begin = time.monotonic()
    with pytest.raises(VideoError, match="not a video"):
        decode(tmp_path / name, Sampling(), unchanged, seek)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("seek", SEEKS)
def test_a_pattern_in_a_name_stands_for_no_other_pictures(tmp_path, seek):
    for number in range(3):
        Image.fromarray(numbered_frame(number)).save(tmp_path / f"{number}.bmp")
    Image.fromarray(numbered_frame(7)).save(tmp_path / "%d.bmp")
    assert numbers(tmp_path / "%d.bmp", seek) == [7]


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", "/dev/zero"):
        for read in (lambda path: decode(path, Sampling(), unchanged), lambda path: times(path, 0, 1)):
            with pytest.raises(VideoError, match="not an ordinary file"):
                read(path)


def write_picture(path):
    first, *others = [Image.fromarray(numbered_frame(number)) for number in range(4)]
    first.save(path, save_all=path.suffix != ".jpg", append_images=others, duration=100)
    return path


@pytest.mark.parametrize("seek", SEEKS)
@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.gif", "a.webp", "a.png", "a.jpg"])
def test_frames_may_have_so_many_pixels(tmp_path, name, seek):
    path = tmp_path / name
    path = write_clip(path, steady(8)) if path.suffix in (".mp4", ".ts") else write_picture(path)
    with pytest.raises(VideoError, match=r"more than 15359.*\(`max_source_pixels` allows more\)"):
        decode(path, Sampling(), unchanged, seek, limits=Limits(max_source_pixels=160 * 96 - 1))
    decode(path, Sampling(), unchanged, seek, limits=Limits(max_source_pixels=160 * 96))


@pytest.mark.parametrize("seek", SEEKS)
def test_the_size_of_a_small_file_may_not_be_huge(tmp_path, seek):
    gif, webp = write_picture(tmp_path / "a.gif"), write_picture(tmp_path / "a.webp")
    for path, place, size in ((gif, 6, struct.pack("<HH", 16000, 16000)), (webp, 24, b"\xc8\x32\0" * 2)):
        data = bytearray(path.read_bytes())
        data[place : place + len(size)] = size
        path.write_bytes(data)
        with pytest.raises(VideoError, match="`max_source_pixels`"):
            decode(path, Sampling(), unchanged, seek)


@pytest.mark.parametrize("seek", SEEKS)
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.png"])
def test_a_video_is_given_up_when_no_frame_comes(tmp_path, name, seek):
    path = write_clip(tmp_path / name, steady(8)) if name == "a.mp4" else write_picture(tmp_path / name)
    with pytest.raises(VideoError, match=r"no frame came within 1e-07 s of decoding \(`timeout`"):
        decode(path, Sampling(), unchanged, seek, limits=Limits(timeout=1e-7))
    with pytest.raises(VideoError, match="`timeout`"):
        list(frames_at(path, [0.0], limits=Limits(timeout=1e-7)))


@pytest.mark.parametrize("seek", SEEKS)
def test_time_that_the_caller_takes_is_not_decoding(tmp_path, seek):
    path = write_clip(tmp_path / "clip.mp4", steady(8))

    def slow(frame, frames):
        time.sleep(1.1)
        return frame

    assert len(decode(path, Sampling(frames=3), slow, seek, limits=Limits(timeout=1.0)).frames) == 3


def test_an_animation_is_decoded_only_as_far_as_it_is_looked_at(tmp_path):
    path = write_picture(tmp_path / "a.webp")
    data = bytearray(path.read_bytes())
    last = data.rindex(b"ANMF") + 50
    data[last : last + 60] = b"\xff" * 60
    path.write_bytes(data)
    assert numbers(path, "fast", Sampling(end=0.2)) == [0, 1, 2]
    with pytest.raises(VideoError, match="damaged"):
        decode(path, Sampling(), unchanged)


def test_an_animation_of_a_hundred_thousand_frames_is_refused_at_once(tmp_path):
    path = write_picture(tmp_path / "a.webp")
    data = path.read_bytes()
    start = data.index(b"ANMF")
    frame = data[start : data.index(b"ANMF", start + 4)]
    size = struct.pack("<I", start - 8 + len(frame) * 100_000)
    path.write_bytes(data[:4] + size + data[8:start] + frame * 100_000)
    begin = time.monotonic()
    with pytest.raises(VideoError, match="it has 100000 frames, and an animated picture may have 10000"):
        decode(path, Sampling(), unchanged)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("seek", SEEKS)
def test_frames_that_change_their_size_are_shown_in_that_of_the_first(tmp_path, seek):
    later, flat = [0.32 + at for at in steady(8)], {"bf": "0"}
    first = write_clip(tmp_path / "first.ts", steady(8), options=flat)
    second = write_clip(tmp_path / "second.ts", later, size=(320, 192), picture=shifted(8), options=flat)
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    clip = decode(tmp_path / "both.ts", Sampling(frames=6), unchanged, seek)
    assert clip.frames.shape == (6, 3, 96, 160)
    assert [number_of(frame) for frame in clip.frames] == [round(at * 25) for at in clip.timestamps]


def matrix(rotation, mirrored):
    cosine, sine = round(math.cos(math.radians(rotation))), round(math.sin(math.radians(rotation)))
    across = -1 if mirrored else 1
    return [across * cosine, across * sine, -sine, cosine]


def write_turned(path, turning, stored, codec="libx264"):
    """A clip whose pictures are stored as `stored` makes them, with these four numbers in its display matrix."""
    height, width = stored(numbered_frame(0)).shape[:2]
    write_clip(
        path, steady(8), codec=codec, size=(width, height), picture=lambda number, *_: stored(numbered_frame(number))
    )
    data = bytearray(path.read_bytes())
    a, b, c, d = (round(number * 65536) for number in turning)
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("kind", ["fast", "exact", "10 bits"])
def test_videos_are_turned_and_mirrored_back(tmp_path, kind, rotation, mirrored):
    def stored(picture):
        picture = np.rot90(picture, rotation // 90)
        return picture[:, ::-1] if mirrored else picture

    path = write_turned(tmp_path / "clip.mp4", matrix(rotation, mirrored), stored)
    if kind == "10 bits":
        path = in_ten_bits(path, tmp_path / "deep.mp4")
    clip = decode(path, Sampling(frames=3), unchanged, "exact" if kind == "exact" else "fast")
    assert [number_of(frame) for frame in clip.frames] == [0, 4, 7]
    assert (clip.facts.width, clip.facts.height, clip.facts.rotation) == (160, 96, rotation)
    assert [number_of(frame) for frame in frames_at(path, clip.timestamps)] == [0, 4, 7]


def in_ten_bits(path, deep):
    """The same clip in 10 bits a channel."""
    with av.open(str(path)) as source:
        stored = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    height, width = stored[0].shape[:2]
    write_clip(deep, steady(8), size=(width, height), pix_fmt="yuv420p10le", picture=lambda number, *_: stored[number])
    data, turned = bytearray(deep.read_bytes()), path.read_bytes()
    there, here = (content.index(b"tkhd") + 44 for content in (data, turned))
    data[there : there + 36] = turned[here : here + 36]
    deep.write_bytes(data)
    return deep


@pytest.mark.parametrize("seek", SEEKS)
@pytest.mark.parametrize("turning", [[0, 0, 0, 0], [1, 1, 1, 1], [0.70711, 0.70711, -0.70711, 0.70711], [2, 0, 0, 2]])
def test_a_matrix_that_turns_by_no_right_angle_counts_as_the_nearest(tmp_path, turning, seek):
    path = write_turned(tmp_path / "clip.mp4", turning, unchanged)
    clip = decode(path, Sampling(frames=3), unchanged, seek)
    assert [number_of(frame) for frame in clip.frames] == [0, 4, 7]
    assert clip.frames.shape == (3, 3, 96, 160) and clip.facts.rotation == 0


@pytest.mark.parametrize("orientation, rotation", [(2, 0), (4, 180), (5, 270), (7, 90)])
def test_a_photo_is_mirrored_back(tmp_path, orientation, rotation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(numbered_frame(9), rotation // 90)[:, ::-1]
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.jpg", quality=95, exif=exif)
    clip = decode(tmp_path / "photo.jpg", Sampling(), unchanged)
    assert number_of(clip.frames[0]) == 9 and clip.facts.rotation == rotation


def test_damaged_files_of_all_kinds_are_read_or_refused():
    # Whole slices, of any length, begin like this one.
    asked = [sys.executable, "-m", "tests.attack", "--seconds", "20", "--files", "700"]
    done = subprocess.run(asked, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0 and "fast: refused" in done.stdout and "exact: read" in done.stdout, done.stdout
