"""Small whole files of the kinds that are attacked."""

from __future__ import annotations

from pathlib import Path

from clips import numbered_frame, steady, write_clip
from PIL import Image

FRAGMENTS = {"movflags": "frag_every_frame+empty_moov"}
VIDEOS = {
    "front.mp4": {"mux_options": {"movflags": "faststart"}, "rotation": 90},
    "fragments.mp4": {"mux_options": FRAGMENTS},
    "groups.mov": {"mux_options": {"movflags": "frag_keyframe+empty_moov"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "h264.mkv": {},
    "hevc.mp4": {"codec": "libx265"},
    "h264.ts": {},
    "mpeg4.avi": {"codec": "mpeg4"},
}


def write_seeds(folder: Path) -> dict[str, bytes]:
    """Write the files to `folder`; returns what they hold, by name."""
    for name, how in VIDEOS.items():
        write_clip(folder / name, steady(16), size=(64, 48), **how)
    first, *others = [Image.fromarray(numbered_frame(number, 64, 48)) for number in range(6)]
    for name in ("a.gif", "a.webp", "a.png"):
        first.save(folder / name, save_all=True, append_images=others, duration=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    first.save(folder / "still.jpg", exif=exif)
    first.save(folder / "still.png")
    first.save(folder / "still.webp")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
