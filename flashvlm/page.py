"""A report: one self-contained HTML file that shows what was kept, moment by moment."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from flashvlm import files, overlay, units
from flashvlm.errors import VideoError
from flashvlm.report import Answer, Inspection, Moment, Seen, Signal, by_video, distinguishes, opening, overlap

# All pictures together take at most about this many bytes, before base64 adds a third.
PICTURES = 3_000_000
# Largest side in pixels, and WebP quality: each picture gets the first that fits.
SIZES = ((960, 80), (800, 75), (640, 72), (520, 68), (420, 62), (320, 55), (240, 45), (160, 30), (96, 20))
# Bytes per pixel of a picture with little texture: where the search for a size begins.
PIXEL = 0.08

# Between a figure and its unit.
NO_BREAK = "\u00a0"
# Questions of more characters than this are set smaller.
LONG = 160

# Heat maps end at this quantile of the values, so that a few outliers do not make all others dark.
BRIGHTEST = 0.995
LEVELS = 255

# What a layer shows. The key of a layer does not depend on which of them there are.
LAYERS = {
    "kept": ("Kept", "kept cells bright, framed for the question and cornered for coverage; dropped ones dimmed."),
    "saliency": ("Saliency", "how much attention a token receives in the last block of the vision encoder."),
    "relevance": (
        "Relevance",
        "how far a token's similarity to the question's words stands out from the others'; up to 1 it is noise, "
        "above that the selector flashvlm raises the token.",
    ),
    "score": ("Score", "what the selector ranks tokens by, from all its signals; each selector has its own scale."),
    "distance": (
        "Distance",
        "how far a token is from the kept one nearest to it, which stands for it; 0 means that nothing is lost.",
    ),
}


def write(path: str | Path, inspections: Sequence[Inspection], answer: Answer | None = None) -> Path:
    """Write a report on one or several selections of the same videos, which are read from their files again.

    Args:
        path: ends in `.html`.
        inspections: of the same videos and question, with the same sampling.
        answer: the answer from the tokens of the first of them.

    Raises:
        UsageError: the path has another suffix; or there are no inspections, or of different moments.
        OutputError: it cannot be written.
        VideoError: the video cannot be read again, or has changed.
    """
    overlay.check_alike(inspections)
    path = files.check_report(path)
    with files.whole(path) as temporary:
        temporary.write_text(render(inspections, answer), encoding="utf-8", errors="backslashreplace")
    return path


def render(inspections: Sequence[Inspection], answer: Answer | None = None, bare: bool = False) -> str:
    """The report as HTML (see `write`); if `bare`, without the page's margins and the name of the program."""
    first = inspections[0]
    data = drawn(inspections)
    for moment, shown in zip(data["moments"], pictures(first), strict=True):
        moment["pictures"] = shown
    frames = data["frames"]
    return (
        environment()
        .get_template("report.html")
        .render(
            title=first.question or overlay.NO_QUESTION,
            bare=bare,
            long=LONG,
            answer=answer.answer if answer else None,
            facts=facts(first),
            warnings=first.warnings,
            figures=figures(first, answer),
            rows=[row(one, first) for one in inspections],
            several=bool(first.videos),
            frames_each=f"{frames} consecutive frames" if frames > 1 else "one frame",
            layers=[layer(name) for name in data["layers"]],
            settings=[*_flat(first.settings), *_flat(first.versions)],
            data=data,
        )
    )


def environment() -> Environment:
    """Where the templates of pages are; what they are given is escaped."""
    return Environment(loader=PackageLoader("flashvlm"), autoescape=True, trim_blocks=True, lstrip_blocks=False)


def layer(name: str) -> dict[str, Any]:
    """What a page says of a layer: its key, its label, and what it shows."""
    label, about = LAYERS[name]
    return {"name": name, "key": list(LAYERS).index(name) + 1, "label": label, "about": about}


def drawn(inspections: Sequence[Inspection]) -> dict[str, Any]:
    """What report.js draws of one or several selections of the same videos, but for the `pictures` of the moments."""
    first = inspections[0]
    signals = {name: first.signals[name] for name in ("saliency", "relevance") if name in first.signals}
    scored = ["score"] if any("score" in one.signals for one in inspections) else []
    distant = ["distance"] if "distance" in first.signals else []
    return {
        "videos": [
            {
                "size": (one.video.width, one.video.height),
                "area": vars(one.area),
            }
            for one in by_video(first)
        ],
        "frames": max(len(moment.timestamps) for moment in first.moments),
        "layers": ["kept", *signals, *scored, *distant],
        "legend": overlay.marks(inspections),
        "opens": opening(first),
        "moments": [
            {
                "video": moment.video,
                "grid": (moment.grid_height, moment.grid_width),
                "placed": moment.placed,
                "label": (f"video {moment.video + 1} · " if first.videos else "") + overlay.label(first, number),
                "ticks": [
                    (f"{moment.video + 1} · " if first.videos else "") + units.timestamp(at)
                    for at in (moment.timestamps[0], moment.timestamps[-1])
                ],
                "times": [units.timestamp(at) for at in moment.timestamps],
            }
            for number, moment in enumerate(first.moments)
        ],
        "signals": {name: _levels(signal) for name, signal in signals.items()},
        "selections": [
            {
                "name": one.selection.selector,
                "apart": distinguishes(one),
                "counts": [_counts(moment, distinguishes(one)) for moment in one.moments],
                "kept": [_cells(moment, distinguishes(one)) for moment in one.moments],
                "whole": [moment.class_token is not None for moment in one.moments],
                "nearest": [_numbers(moment.nearest) for moment in one.moments],
                "signals": {name: _levels(one.signals[name]) for name in ("score", "distance") if name in one.signals},
            }
            for one in inspections
        ],
    }


def snippet(seen: Seen) -> str | None:
    """The report of an answer or an inspection for a notebook, in a frame of its own: neither changes the other.

    An answer has no signals, so that its report has the kept tokens alone. None if the video cannot be read again.
    """
    if isinstance(seen, Answer):
        shared = {one.name: getattr(seen, one.name) for one in fields(Inspection) if hasattr(seen, one.name)}
        inspection, answer = Inspection(**{**shared, "seconds": vars(seen.seconds), "signals": {}}), seen
    else:
        inspection, answer = seen, None
    try:
        page = render([inspection], answer, bare=True)
    except VideoError:
        return None
    fitted = "this.style.height = this.contentDocument.documentElement.scrollHeight + 'px'"
    style = "width: 100%; height: 700px; border: 0"
    return f'<iframe srcdoc="{html.escape(page)}" style="{style}" onload="{fitted}" title="flashvlm report"></iframe>'


def facts(seen: Inspection) -> list[str]:
    """The videos and the model, fact by fact."""
    model, clips = seen.model, []
    for number, clip in enumerate(seen.videos or [seen.video], 1):
        length = [units.timestamp(clip.duration), f"{clip.fps:.4g}{NO_BREAK}fps"] if clip.fps else ["still"]
        name = f"video {number}: {clip.path}" if seen.videos else clip.path
        clips += [name, f"{clip.width} × {clip.height}".replace(" ", NO_BREAK), *length]
    looked = f"{units.plural(seen.frames, 'frame')} in {units.plural(len(seen.moments), 'moment')}"
    named = [model.name, model.family, model.device, model.dtype]
    return [*clips, looked, *dict.fromkeys(named)]


def figures(seen: Inspection, answer: Answer | None) -> list[dict[str, str]]:
    """What was kept and saved: figures with a `label`, a `value` and a `note`."""

    def saved(label: str, before: int, after: int, unit: str) -> dict[str, str]:
        shown = [units.scaled(count, unit) if unit else units.count(count) for count in (before, after)]
        shown = [figure.replace(" ", NO_BREAK) for figure in shown]
        factor = units.factor(before, after)
        note = f"{units.percent(after, before)} left" + (f", {factor} less" if factor else "")
        return {"label": label, "value": " → ".join(shown), "note": note}

    chosen = seen.selection
    apart = f"{units.count(chosen.important)} for the question, {units.count(chosen.diverse)} for coverage"
    figures = [
        saved("tokens", seen.tokens.before, seen.tokens.after, ""),
        {"label": "selector", "value": chosen.selector, "note": apart if distinguishes(seen) else ""},
        {"label": "radius δ", "value": f"{chosen.delta:.3f}", "note": "farthest any token is from a kept one"},
    ]
    if answer is None:
        took = units.seconds(seen.seconds["select"])
        return [*figures, {"label": "selection", "value": took, "note": "to choose the tokens"}]
    took = units.seconds(answer.seconds.time_to_first_token)
    return [
        *figures,
        saved("KV cache", answer.kv_cache_bytes.before, answer.kv_cache_bytes.after, "B"),
        saved("prefill", answer.prefill_flops.before, answer.prefill_flops.after, "FLOP"),
        {"label": "first token", "value": took, "note": f"whole answer {units.seconds(answer.seconds.total)}"},
    ]


def row(one: Inspection, first: Inspection) -> dict[str, str]:
    """One of several selections, as a row of a table that compares them with the first."""
    chosen, apart = one.selection, distinguishes(one)
    return {
        "name": chosen.selector,
        "kept": units.count(one.tokens.after),
        "important": units.count(chosen.important) if apart else "",
        "diverse": units.count(chosen.diverse) if apart else "",
        "delta": f"{chosen.delta:.3f}",
        "overlap": "" if one is first else units.percent(overlap(first, one), one.tokens.after),
    }


def _flat(settings: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{name}.")
        elif value is not None:
            rows.append((before + name, value))
    return rows


def _counts(moment: Moment, apart: bool) -> tuple[int, int]:
    """How many tokens of a moment the timeline shows above and below its line."""
    return (moment.important_count, moment.kept_count - moment.important_count) if apart else (moment.kept_count, 0)


def _cells(moment: Moment, apart: bool) -> str:
    """A digit per cell: 0 dropped, 1 kept for coverage, 2 kept for the question, 3 kept (not distinguished)."""
    cells = ["0"] * (moment.grid_height * moment.grid_width)
    for (row, column), important in zip(moment.kept, moment.important, strict=True):
        cells[row * moment.grid_width + column] = ("2" if important else "1") if apart else "3"
    return "".join(cells)


def _numbers(values: Sequence[int]) -> str:
    """Whole numbers as 32-bit ones, low byte first, in base64."""
    return base64.b64encode(np.array(values, dtype="<i4").tobytes()).decode()


def _levels(signal: Signal) -> dict[str, Any]:
    """A signal as a byte per cell: `LEVELS` steps from its lowest value, or 0, to its highest without outliers."""
    values = sorted(value for moment in signal.moments for value in moment)
    # Relevance below the median, which is 0, says nothing.
    low = max(values[0], 0.0)
    high = max(values[math.ceil(BRIGHTEST * len(values)) - 1], low)
    scale = LEVELS / (high - low) if high > low else 0.0
    return {
        "low": low,
        "high": high,
        "clipped": values[-1] > high,
        "moments": [
            base64.b64encode(bytes(min(LEVELS, max(0, round((value - low) * scale))) for value in moment)).decode()
            for moment in signal.moments
        ],
    }


def pictures(seen: Inspection) -> list[list[str]]:
    """The frames of each moment as data URIs, read from the videos again.

    They are small enough that all of them fit into `PICTURES` bytes.

    Raises:
        VideoError: a video cannot be read again, or has changed.
    """
    return list(_pictures(seen, max(len(moment.timestamps) for moment in seen.moments)))


def _pictures(seen: Inspection, frames: int) -> Iterator[list[str]]:
    count = sum(len(moment.timestamps) for moment in seen.moments)
    step, left = 0, PICTURES
    sides = [sorted((video.width, video.height)) for video in seen.videos or [seen.video]]
    shape = max(short / long for short, long in sides)
    while step < len(SIZES) - 1 and PIXEL * shape * SIZES[step][0] ** 2 > PICTURES / count:
        step += 1
    for pictures in overlay.moment_pictures(seen, frames):
        encoded = []
        for picture in pictures:
            data = _webp(picture, step)
            while len(data) > left / count and step < len(SIZES) - 1:
                step += 1
                data = _webp(picture, step)
            left, count = left - len(data), count - 1
            encoded.append(f"data:image/webp;base64,{base64.b64encode(data).decode()}")
        yield encoded


def _webp(picture: Image.Image, step: int) -> bytes:
    side, quality = SIZES[step]
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
