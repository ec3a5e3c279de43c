"""Where the evidence of an object lies: `python -m training.evidence --model demo --clips 300`.

A picture of what was kept shows cells, and a reader takes a cell for what its pixels show. But in the vision encoder
every cell attends to all others of its moment. This measures what that does, on questions such as "Which animal is
there?" about clips of the demo world, in which the place of every object is known:

- what share of the cells names the object: of all 26 names, its own has the highest cosine with the token;
- what share of the questions is answered rightly from the kept tokens alone, or from other sets of at most as many.

With `--every-question`, questions of all families are asked, and the sets are the kept tokens, those of them at or
beside an object, the others of them, and as many tokens drawn from all that are at or beside an object. After each
share stands its difference to that of the kept tokens, in points, with a paired interval.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from flashvlm import VideoQA
from flashvlm.bench import scoring
from flashvlm.bench.clips import REPORTED, Clips
from flashvlm.bench.data import Asked
from flashvlm.demo.world import NAMES, Scene, Thing
from flashvlm.encode import Encoded
from flashvlm.generate import answers
from flashvlm.options import AskOptions, Keep

# A cell is the object's if its box covers this share of it, and near if its box touches it at all or a neighbour's.
COVERED = 0.5
# What was found, by the kind of cell or the set of tokens.
Found = dict[str, list[bool]]


def places(encoded: Encoded, scene: Scene, thing: Thing) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) what share of each cell the object's box covers, and (N,) whether the object is there in its moment."""
    rows, columns = encoded.height, encoded.width
    width, height = scene.extent
    frames = len(encoded.timestamps) // encoded.groups or 1
    covered = torch.zeros(encoded.groups, rows, columns)
    there = torch.zeros(encoded.groups, dtype=torch.bool)
    for group in range(encoded.groups):
        for time in encoded.timestamps[group * frames : (group + 1) * frames]:
            when = min(1.0, time / max(encoded.timestamps[-1], 1e-9)) if scene.frames > 1 else 0.0
            if thing.visible(when):
                x, y = thing.centre(when)
                across = _overlap(x, thing.size / width, columns)
                down = _overlap(y, thing.size / height, rows)
                covered[group] = covered[group].maximum(down[:, None] * across)
                there[group] = True
    return covered.flatten(), there.repeat_interleave(rows * columns)


def _overlap(centre: float, length: float, cells: int) -> torch.Tensor:
    """(cells,) the share of each cell, along one axis, that lies within `length` of the picture around `centre`."""
    edges = torch.arange(cells + 1) / cells
    low, high = centre - length / 2, centre + length / 2
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells


def near(covered: torch.Tensor, encoded: Encoded) -> torch.Tensor:
    """(N,) whether a cell, or one beside it, has any part of the object."""
    grid = (covered > 0).float().view(encoded.groups, 1, encoded.height, encoded.width)
    return F.max_pool2d(grid, 3, stride=1, padding=1).flatten() > 0


@dataclass(frozen=True, eq=False)
class Case:
    """One question on one clip: the tokens of the clip, those kept, and where its objects are."""

    scene: Scene
    asked: Asked
    encoded: Encoded
    kept: torch.Tensor


def cases(qa: VideoQA, count: int, share: str, every_question: bool) -> Iterator[Case]:
    """So many of the reported clips of `clips`, each with its question."""
    data, options = Clips(), AskOptions(keep=Keep.parse(share), cache=False)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(REPORTED, 10**6):
            scene, (asked, *_) = data._drawn(number)
            if every_question or asked.family == "kind":
                watched = qa.watch(data.video(number, Path(folder)), options)
                choice = qa.choose(watched, asked.text, options)
                encoded = choice.videos[0].encoded
                if encoded.class_tokens:
                    raise SystemExit("This looks at models without class tokens only.")
                yield Case(scene, asked, encoded, choice.selection.indices)
                count -= 1
            if not count:
                return


def around(case: Case) -> torch.Tensor:
    """(N,) whether a cell is at or beside any object of the scene."""
    every = [near(places(case.encoded, case.scene, one)[0], case.encoded) for one in case.scene.things]
    return torch.stack(every).any(0)


def of_one_object(case: Case, names: torch.Tensor, naming: Found) -> dict[str, torch.Tensor]:
    """The sets of tokens for a question whose answer is an object; `naming` gets which cells name it."""
    thing = next(thing for thing in case.scene.things if thing.name == case.asked.answer)
    covered, there = places(case.encoded, case.scene, thing)
    mine, away = covered >= COVERED, ~around(case)
    chosen = torch.zeros(len(mine), dtype=torch.bool).index_fill_(0, case.kept, True)
    nearest = F.cosine_similarity(case.encoded.tokens.float()[:, None], names, dim=2).argmax(1)
    for kind, cells in {
        "the object's cells": mine,
        "cells beside it": near(covered, case.encoded) & ~mine & there,
        "kept, elsewhere in its moments": away & there & chosen,
        "dropped, elsewhere in its moments": away & there & ~chosen,
        "in moments without it": away & ~there,
    }.items():
        naming[kind] += (nearest[cells] == NAMES.index(thing.name)).tolist()
    count = min(len(case.kept), int(mine.sum()))
    return {
        "kept": case.kept,
        "as many as the object has, of its cells": drawn(mine, count),
        "kept, but not at the object": case.kept[covered[case.kept] == 0],
        "as many, elsewhere in its moments": drawn(away & there, count),
        "as many, in moments without it": drawn(away & ~there, count),
    }


def of_all_objects(case: Case) -> dict[str, torch.Tensor]:
    """The sets of tokens for any question."""
    objects = around(case)
    return {
        "kept": case.kept,
        "kept, at or beside an object": case.kept[objects[case.kept]],
        "kept, elsewhere": case.kept[~objects[case.kept]],
        "as many as kept, at or beside an object": drawn(objects, len(case.kept)),
    }


def drawn(cells: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` of the cells, ascending, drawn evenly."""
    there = cells.nonzero().flatten()
    order = np.random.default_rng(0).permutation(len(there))[:count]
    return there[torch.from_numpy(np.sort(order))]


@torch.inference_mode()
def right(qa: VideoQA, case: Case, indices: torch.Tensor) -> bool:
    """Whether the question is answered rightly from these tokens."""
    if not len(indices):
        return False
    prompt = qa.backend.prompt(case.asked.text, None, [case.encoded])
    said = answers(qa.backend, prompt, indices[None], case.encoded.tokens[indices][None], None, max_new_tokens=24)
    return scoring.right(case.asked, said[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evidence", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--keep", default="10%")
    parser.add_argument("--every-question", action="store_true")
    asked = parser.parse_args()
    qa = VideoQA.from_pretrained(asked.model, dtype="float32")
    names = torch.stack([qa.backend.words(name).float().mean(0) for name in NAMES])
    naming: Found = defaultdict(list)
    answered: Found = defaultdict(list)
    sizes: dict[str, list[float]] = defaultdict(list)
    for case in cases(qa, asked.clips, asked.keep, asked.every_question):
        for name, indices in (
            of_all_objects(case) if asked.every_question else of_one_object(case, names, naming)
        ).items():
            answered[name].append(right(qa, case, indices))
            sizes[name].append(len(indices) / len(case.encoded.tokens))
    for title, table in (("names the object", naming), ("answered rightly from", answered)):
        print(title if table else "", end="\n" if table else "")
        for name, values in table.items():
            low, high = scoring.wilson(sum(values), len(values))
            more = f", {np.mean(sizes[name]):.1%} of the tokens" if name in sizes else ""
            if name in answered and name != "kept":
                pairs = np.array([answered["kept"], values], dtype=bool).T
                samples = scoring.resample(pairs, np.arange(len(pairs)))
                least, most = scoring.interval(samples[:, 1] - samples[:, 0]) or (0.0, 0.0)
                difference = np.mean(values) - np.mean(answered["kept"])
                more += f"; {100 * difference:+.1f} ({100 * least:+.1f} to {100 * most:+.1f})"
            print(f"  {name:40} {np.mean(values):6.1%}  ({low:.1%} to {high:.1%}, n = {len(values)}{more})")


if __name__ == "__main__":
    main()
