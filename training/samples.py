"""The sample clips: `python -m training.samples samples` makes them again."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from flashvlm.demo.clips import picture_size, write_clip
from flashvlm.demo.questions import Question, ask
from flashvlm.demo.world import make_scene, render

SEED = (2025, 12, 20)
# For each sample clip: settings of `make_scene`, of `write_clip`, and what is asked.
X264 = {"crf": "26", "preset": "slow"}
UNEVEN = np.cumsum(np.tile([0.04, 0.12, 0.3, 0.06, 0.2], 14))
SAMPLES: dict[str, tuple[dict, dict, tuple[str, ...]]] = {
    "one.mp4": ({"frames": 12, "count": 1, "sequence": False}, {"options": X264}, ("caption", "motion", "kind")),
    "two.mp4": ({"frames": 16, "count": 2, "sequence": False}, {"options": X264}, ("mover", "count", "exist")),
    "sequence.mp4": ({"frames": 24, "count": 3, "sequence": True}, {"options": X264}, ("first", "last", "moment")),
    "av1.mp4": ({"frames": 12, "count": 3, "sequence": False}, {"codec": "libsvtav1"}, ("where", "exist", "count")),
    "vp9.webm": (
        {"frames": 12, "count": 2, "sequence": False},
        {"codec": "libvpx-vp9", "options": {"crf": "36", "b": "0"}},
        ("motion", "start", "end"),
    ),
    "hevc.mp4": (
        {"frames": 16, "count": 2, "sequence": True},
        {"codec": "libx265", "options": {"x265-params": "log-level=none", "crf": "28"}},
        ("caption", "first", "motion"),
    ),
    "mpeg4.mp4": (
        {"frames": 8, "count": 4, "sequence": False},
        {"codec": "mpeg4", "options": {"qscale": "5"}},
        ("count", "exist", "kind"),
    ),
    "phone.mp4": (
        {"frames": 12, "count": 2, "sequence": False, "aspect": (9, 16)},
        {"options": X264, "rotation": 90},
        ("where", "motion", "kind"),
    ),
    "variable-rate.mp4": (
        {"frames": 20, "count": 2, "sequence": False},
        {"options": X264, "times": UNEVEN - UNEVEN[0]},
        ("motion", "mover", "exist"),
    ),
    "still.jpg": ({"frames": 1, "count": 3}, {}, ("where", "count", "exist")),
    "long.mp4": (
        {"frames": 64, "count": 2, "sequence": True, "aspect": (16, 9)},
        {"options": X264 | {"g": "240"}, "seconds": 120.0},
        ("last", "exist", "mover"),
    ),
}


def make_samples(folder: Path) -> None:
    """Write the sample clips and `questions.jsonl` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (name, (settings, form, families)) in enumerate(SAMPLES.items()):
        rng = np.random.default_rng([*SEED, number])
        questions: list[Question | None] = [None]
        while not all(questions):
            scene = make_scene(rng, **settings)
            if name == "long.mp4":
                # Two minutes, with an object that passes through within six seconds.
                passing = replace(scene.things[1], appears=0.6, vanishes=0.65)
                scene = replace(scene, things=(replace(scene.things[0], appears=0.0, vanishes=0.4), passing))
            questions = [ask(scene, family, rng) for family in families]
        path = folder / name
        if scene.still:
            height, width = picture_size(scene, 480 * 480)
            Image.fromarray(render(scene, np.zeros(1), height, width)[0]).save(path, quality=88)
        else:
            write_clip(scene, path, **form)
        for question in questions:
            assert question is not None
            line = {"video": name, "question": question.text, "answer": question.answer, "family": question.family}
            lines.append(json.dumps(line) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the sample clips and questions.jsonl.")
    parser.add_argument("folder", type=Path)
    make_samples(parser.parse_args().folder)
