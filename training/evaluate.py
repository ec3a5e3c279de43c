"""Evaluate a demo model: `python -m training.evaluate --model demo -o evaluation.json`.

The clips are held out (their seeds are never used in training); each is written as an H.264 file and read back by the
ordinary decode path. By default all tokens are kept. Questions of the training kind are also asked about another clip's
video; further questions have wordings, or pairs of a name and a direction, that training never had. An answer is right
if it equals the expected text, ignoring case.

A model that looks at a fixed number of frames, and at the middle square of each, is asked about square clips that this
many frames are enough to understand (`world.tells`), as in its training; `--any-clip` asks it about clips of all shapes
and lengths.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from flashvlm import VideoQA
from flashvlm.bench.clips import GUESSES, film
from flashvlm.bench.scoring import wilson
from flashvlm.demo.clips import HELD_OUT_SEED
from flashvlm.demo.questions import FAMILIES, Question, ask
from flashvlm.demo.world import Scene, make_scene, make_told_scene, sample_times
from flashvlm.models import fetch
from flashvlm.options import DEFAULT_SELECTOR, AskOptions, Keep

QUESTIONS = 3
_qa: VideoQA
_options: AskOptions
_looks: int | None
_before: Any = None


def _load(model: str, keep: str, selector: str, device: str, threads: int, any_clip: bool) -> None:
    import torch

    global _qa, _options, _looks
    torch.set_num_threads(threads)
    _qa = VideoQA.from_pretrained(model, device=device)
    _looks = None if any_clip else _qa.backend.default_frames
    _options = AskOptions(keep=Keep.parse(keep), selector=selector, max_new_tokens=24)


def _scene(rng: np.random.Generator, pairs: bool) -> Scene:
    """Generate a clip of the kind that the model was trained on, or with `pairs` one with pairs that it never saw."""
    settings: dict[str, Any] = {"held_out_pairs": pairs}
    if pairs:
        settings["frames"] = int(rng.choice([4, 8, 16, 32]))
    if _looks is None:
        return make_scene(rng, **settings)
    return make_told_scene(rng, sample_times(_looks), **settings)


def _records(number: int) -> list[dict[str, Any]]:
    """Questions and answers about held-out clip `number`; every fifth clip shows pairs that training never had."""
    global _before
    rng = np.random.default_rng([*HELD_OUT_SEED, number])
    pairs = number % 5 == 4
    scene = _scene(rng, pairs)
    with tempfile.TemporaryDirectory() as folder:
        watched = _qa.watch(film(scene, rng, Path(folder) / "clip.mp4"), _options)
    other, _before = _before, watched
    families = ("motion", "mover", "caption") if pairs else FAMILIES
    found: list[tuple[str, Question]] = []
    for family in rng.permutation(families).tolist():
        question = ask(scene, family, rng)
        if question is not None and len(found) < QUESTIONS:
            found.append(("pairs" if pairs else "held out", question))
    if not pairs:
        held_out = [ask(scene, question.family, rng, held_out_wording=True) for _, question in found[:1]]
        found += [("wordings", question) for question in held_out if question is not None]
    records = []
    for kind, question in found:
        record = {"clip": number, "frames": scene.frames, "set": kind, "family": question.family}
        record |= {"question": question.text, "answer": question.answer}
        record["said"] = _qa.answer(watched, question.text, _options).answer
        if kind == "held out" and other is not None:
            record["said_to_other"] = _qa.answer(other, question.text, _options).answer
        records.append(record)
    return records


def summary(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Accuracy by set and family: count, share right, its interval, chance, share right with another clip's video."""
    table: dict[str, dict[str, Any]] = {}
    for kind in ("held out", "wordings", "pairs"):
        ours = [record for record in records if record["set"] == kind]
        for family in ("all", *FAMILIES):
            some = [record for record in ours if family in ("all", record["family"])]
            if not some:
                continue
            right = sum(record["said"].lower() == record["answer"] for record in some)
            swapped = [record for record in some if "said_to_other" in record]
            common = Counter(record["answer"] for record in some).most_common(1)[0][1] / len(some)
            row = {"count": len(some), "accuracy": right / len(some), "interval": wilson(right, len(some))}
            if family != "all":
                row["chance"] = max(common, 1 / GUESSES[family] if family in GUESSES else 0.0)
            if swapped:
                other = sum(record["said_to_other"].lower() == record["answer"] for record in swapped)
                row["other_video"] = other / len(swapped)
            table[f"{kind} / {family}"] = row
    return table


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """The table for the model card."""
    lines = [
        "| questions | n | right | 95 % interval | chance | with another clip's video |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        low, high = row["interval"]
        chance = f"{row['chance']:.1%}" if "chance" in row else ""
        other = f"{row['other_video']:.1%}" if "other_video" in row else ""
        lines.append(
            f"| {name} | {row['count']} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | {chance} | {other} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=int, default=1250, help="a fifth of them for the pairs (default: 1250)")
    parser.add_argument("--begin", type=int, default=0, help="number of the first clip")
    parser.add_argument("--keep", default="100%")
    parser.add_argument("--selector", default=DEFAULT_SELECTOR)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--any-clip", action="store_true", help="clips of all shapes and lengths, for every model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--card", type=Path, help="write the model card here")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/evaluation.json"))
    arguments = parser.parse_args()
    settings = (arguments.model, arguments.keep, arguments.selector, arguments.device, 1, arguments.any_clip)
    numbers = range(arguments.begin, arguments.begin + arguments.clips)
    with ProcessPoolExecutor(arguments.workers, initializer=_load, initargs=settings) as pool:
        records = [record for some in pool.map(_records, numbers, chunksize=5) for record in some]
    table = summary(records)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({"settings": settings, "begin": arguments.begin, "table": table, "records": records}, indent=1)
        + "\n"
    )
    print(markdown(table), end="")
    if arguments.card:
        family = json.loads((fetch(arguments.model) / "config.json").read_text())["model_type"]
        template = (Path(__file__).parent / f"card-{family}.md").read_text()
        arguments.card.write_text(
            template.format(clips=f"{arguments.clips:,}", begin=arguments.begin, table=markdown(table))
        )


if __name__ == "__main__":
    main()
