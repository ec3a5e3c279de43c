"""Do earlier questions help a demo model? `python -m training.follow_ups --model demo --data clips --limit 240`.

About each clip, its second question is asked alone and after the first one. If an animal, a vehicle or a food is the
only one of its kind, it is asked which one is there, and then where it is (or which way it moves): by its name, as
"it", and by its kind, each alone and after the first question. The answers to first questions are the model's own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np

from flashvlm import AskOptions, VideoQA
from flashvlm.bench import scoring
from flashvlm.bench.clips import REPORTED, Clips, EightLooks, Generated
from flashvlm.bench.data import Asked
from flashvlm.demo.questions import place
from flashvlm.demo.world import Scene, Thing

DATA: dict[str, type[Generated]] = {"clips": Clips, "eight-looks": EightLooks}
KINDS = ("animal", "vehicle", "food")


def only_one(scene: Scene) -> Thing | None:
    """The first thing that is the only one of its kind and can be asked about."""
    for kind in KINDS:
        things = [thing for thing in scene.things if thing.kind == kind]
        if len(things) == 1 and not scene.still:
            return things[0]
    return None


def measure(qa: VideoQA, data: Generated, number: int, options: AskOptions) -> dict[str, bool]:
    """Which questions about clip `number` are answered right, by what is asked and whether earlier ones are known."""
    with tempfile.TemporaryDirectory() as folder:
        watched = qa.watch(data.video(number, Path(folder)), options).again()

    @cache
    def said(question: str, history: tuple[tuple[str, str], ...] = ()) -> str:
        return qa.answer(watched, question, options, history=history).answer

    found = {}

    def compare(name: str, first: str, question: str, answer: str) -> None:
        asked = Asked(question, answer, name)
        found[f"{name}, alone"] = scoring.right(asked, said(question))
        found[f"{name}, after another"] = scoring.right(asked, said(question, ((first, said(first)),)))

    questions = data.questions(number)
    if len(questions) == 2:
        compare("the second question", questions[0].text, questions[1].text, questions[1].answer)
    if thing := only_one(data.shown(number)):
        template, answer = ("Where is {}?", place(thing.start))
        if thing.direction is not None:
            template, answer = "Which way does {} move?", thing.direction
        for name, called in (("its name", f"the {thing.name}"), ("it", "it"), ("its kind", f"the {thing.kind}")):
            compare(name, f"Which {thing.kind} is there?", template.format(called), answer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", choices=DATA, default="clips")
    parser.add_argument("--begin", type=int, default=REPORTED)
    parser.add_argument("--limit", type=int, default=240)
    parser.add_argument("--keep", default="10%")
    given = parser.parse_args()
    qa = VideoQA.from_pretrained(given.model, device="cpu", dtype="float32")
    data, options = DATA[given.data](questions=2), AskOptions(keep=given.keep)
    right: dict[str, list[bool]] = defaultdict(list)
    for number in range(given.begin, given.begin + given.limit):
        for name, value in measure(qa, data, number, options).items():
            right[name].append(value)
    print(f"{given.model} on {given.data} {given.begin} to {given.begin + given.limit - 1}, {given.keep} of the tokens")
    for name, values in right.items():
        low, high = scoring.wilson(sum(values), len(values))
        print(f"{name:37} {np.mean(values):6.1%} ({100 * low:.1f}–{100 * high:.1f}) of {len(values)}")


if __name__ == "__main__":
    main()
