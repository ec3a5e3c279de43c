"""Questions about a scene, with their answers: several wordings each, the last of which is never used in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashvlm.demo.world import DIRECTIONS, KINDS, NAMES, Scene, Thing, third

PLURALS = {"animal": "animals", "vehicle": "vehicles", "food": "foods", "object": "objects"}
NUMBERS = ("none", "one", "two", "three", "four")
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)

# The last wording of each family is held out of training; all of its words occur in other wordings.
WORDINGS: dict[str, tuple[str, ...]] = {
    "kind": (
        "Which {kind} is there?", "What {kind} is in the video?", "Which {kind} do you see?", "Name the {kind}.",
        "What is the {kind}?", "What {kind} is there?", "Which {kind} is shown?",
        "Which {kind} is in the video?",
    ),
    "motion": (
        "Which way does the {x} move?", "In which direction does the {x} move?", "What is the direction of the {x}?",
        "Where does the {x} move?", "Which way does the {x} go?",
        "In which direction does the {x} go?",
    ),
    "mover": (
        "What moves {way}?", "Which object moves {way}?", "What is moving {way}?", "What object goes {way}?",
        "Which object is moving {way}?",
    ),
    "where": (
        "Where is the {x}?", "What is the position of the {x}?", "In which part of the picture is the {x}?",
        "Where do you see the {x}?", "Where is the {x} located?",
        "Where in the picture is the {x}?",
    ),
    "start": (
        "Where does the {x} start?", "Where is the {x} at the start?", "What is the position of the {x} at the start?",
        "In which part of the picture does the {x} start?",
    ),
    "end": (
        "Where does the {x} end?", "Where is the {x} at the end?", "What is the position of the {x} at the end?",
        "In which part of the picture does the {x} end?",
    ),
    "exist": (
        "Is there {a} {x}?", "Do you see {a} {x}?", "Is {a} {x} in the video?", "Is there {a} {x} in the picture?",
        "Is there {a} {x} in the video?",
    ),
    "count": (
        "How many {kinds} are there?", "How many {kinds} do you see?", "Count the {kinds}.",
        "How many {kinds} are in the picture?",
        "How many {kinds} are in the video?",
    ),
    "first": (
        "What appears first?", "Which object appears first?", "What is the first object?", "What comes first?",
        "Which object is first?",
    ),
    "last": (
        "What appears last?", "Which object appears last?", "What is the last object?", "What comes last?",
        "Which object is last?",
    ),
    "moment": (
        "What is there at the {end}?", "What do you see at the {end}?", "What is visible at the {end}?",
        "Which object is there at the {end}?", "Which object do you see at the {end}?",
        "Which object is visible at the {end}?",
    ),
    "caption": (
        "What happens?", "What happens in the video?", "Describe the video.", "What do you see?",
        "What is happening?", "What is happening in the video?",
        "Describe what happens.",
    ),
}  # fmt: skip
FAMILIES = tuple(WORDINGS)


@dataclass(frozen=True)
class Question:
    """One question about a scene, with its right answer."""

    family: str
    text: str
    answer: str


def article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def place(at: tuple[float, float]) -> str:
    """The name of the ninth of the picture that a point lies in."""
    return PLACES[third(at[1])][third(at[0])]


def _deed(thing: Thing) -> str:
    deed = f"moves {thing.direction}" if thing.direction else "stays still"
    return f"{article(thing.name)} {thing.name} {deed}"


def caption(scene: Scene) -> str:
    """What happens, in a sentence: every object and what it does, in the order of `NAMES`."""
    return " and ".join(_deed(thing) for thing in sorted(scene.things, key=lambda thing: NAMES.index(thing.name)))


def ask(scene: Scene, family: str, rng: np.random.Generator, *, held_out_wording: bool = False) -> Question | None:
    """Generate a question of one family about the scene; None if the scene does not allow one.

    Answers are balanced within the family as far as the scene allows, by drawing the answer first.
    """
    things = scene.things
    still = [thing for thing in things if thing.direction is None]
    moving = [thing for thing in things if thing.direction is not None]

    def pick(options: list):  # type: ignore[type-arg]
        return options[rng.integers(len(options))] if options else None

    words: dict[str, str] = {}
    answer: str | None = None
    match family:
        case "kind":
            alone = [kind for kind in KINDS if kind != "thing" and sum(t.kind == kind for t in things) == 1]
            if kind := pick(alone):
                words, answer = {"kind": kind}, next(t.name for t in things if t.kind == kind)
        case "motion":
            # The four directions and "nowhere" should be about equally frequent.
            if not scene.still and (thing := pick(still if still and rng.random() < 0.25 else moving)):
                words, answer = {"x": thing.name}, thing.direction or "nowhere"
        case "mover":
            alone = [way for way in DIRECTIONS if sum(t.direction == way for t in moving) == 1]
            if len(things) > 1 and (way := pick(alone)):
                words, answer = {"way": way}, next(t.name for t in moving if t.direction == way)
        case "where":
            if thing := pick(still):
                words, answer = {"x": thing.name}, place(thing.start)
        case "start" | "end":
            if thing := pick(moving):
                words, answer = {"x": thing.name}, place(thing.start if family == "start" else thing.end)
        case "exist":
            here = [thing.name for thing in things]
            there = bool(rng.random() < 0.5)
            name = pick(here if there else [name for name in NAMES if name not in here])
            words, answer = {"x": name, "a": article(name)}, "yes" if there else "no"
        case "count" if not scene.sequence:
            # Only objects that are visible at the same time are counted.
            counts = {kind: sum(t.kind == kind for t in things) for kind in ("animal", "vehicle", "food")}
            counts["object"] = len(things)
            wanted = rng.integers(0, len(NUMBERS))
            if kind := pick([kind for kind, number in counts.items() if number == wanted]):
                words, answer = {"kinds": PLURALS[kind]}, NUMBERS[wanted]
        case "first" | "last" if scene.sequence:
            answer = things[0 if family == "first" else -1].name
        case "moment" if scene.sequence:
            # In a sequence, at most one object is visible at either end.
            end = pick(["start", "end"])
            seen = [thing.name for thing in things if thing.visible(0.0 if end == "start" else 1.0)]
            words, answer = {"end": end}, seen[0] if seen else "nothing"
        case "caption" if len(things) <= 2 and not scene.still:
            answer = caption(scene)
    if answer is None:
        return None
    wordings = WORDINGS[family]
    wording = wordings[-1] if held_out_wording else pick(list(wordings[:-1]))
    return Question(family, wording.format(**words), answer)
