"""When an answer is right, and how certain the means of scores are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from flashvlm.bench.data import LETTERS, Asked
from flashvlm.journal import Record

ARTICLES = frozenset(("a", "an", "the"))
RESAMPLES = 5000
# With fewer questions in a family, its commonest answer may be common by chance.
FEW = 10
# How exactly an accuracy should be known, and when it is not known well enough to be drawn, in halves of its interval.
WITHIN, TOO_WIDE = 0.05, 0.1


# A number with its sign and decimals, C++ and its like, or a word.
WORD = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?!\w)|(?<![^\W_])[a-z](?:\+\+|#)(?!\w)|[^\W_]+")
# A letter alone or at the beginning, plain or in bold; or, in upper case or parentheses, after `Answer:` and its like.
ENDS = r"(?=[.:),]|\*\*|\s*$)"
LETTER = re.compile(
    r"\s*\**(?:"
    r"(?i:(?:the )?(?:(?:best|correct|right) )?(?:answer|choice|option)(?: is)?(?: option| choice)?(?::\**\s*|\s+))\**"
    rf"(?:\(([A-Za-z])\)|([A-Z]){ENDS})"
    rf"|\(([A-Za-z])\)|([A-Za-z]){ENDS.replace(',', '')})"
)


def normalised(text: str) -> str:
    """The text in lower case, without articles and punctuation but the sign and point of numbers, one space between
    words."""
    words = [word.removeprefix("+") for word in WORD.findall(text.lower().replace("\N{MINUS SIGN}", "-"))]
    return " ".join(word for word in words if word not in ARTICLES)


def prompt(asked: Asked) -> str:
    """The question as the model gets it, followed by its lettered choices, if any."""
    if not asked.choices:
        return asked.text
    choices = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, asked.choices, strict=False)]
    return "\n".join([asked.text, *choices, "Answer with the letter of the right choice."])


def expected(asked: Asked) -> str:
    """The right answer as the model is asked for it: the letter of the right choice, or the text."""
    place = asked.choices.index(asked.answer) if asked.choices else len(LETTERS)
    return LETTERS[place] if place < len(LETTERS) else asked.answer


def right(asked: Asked, said: str) -> bool:
    """Whether `said` answers the question.

    Without choices, it must be the expected text, both `normalised`. With choices, it must be the letter of the right
    one, as `LETTER` finds it (`B`, `B.`, `(B)`, `**B**`, `Answer: B`); if it gives no letter, the text of the right
    one, likewise `normalised`.
    """
    same = said.strip().lower() == asked.answer.strip().lower()
    if asked.choices and not same:
        letter = LETTER.match(said)
        place = LETTERS.index(next(filter(None, letter.groups())).upper()) if letter else len(asked.choices)
        if place < len(asked.choices):
            return asked.choices[place] == asked.answer
    # A text of only articles and punctuation must match as it is.
    return same or normalised(said) == normalised(asked.answer) != ""


def chance(asked: Sequence[Asked], guesses: Mapping[str, int]) -> float:
    """The accuracy of answering without looking at the video.

    In each family, this is the better of its commonest answer and a guess among the answers it admits; over several
    families, their mean weighted by the number of questions.
    """
    total = 0.0
    for family in {one.family for one in asked}:
        ours = [one for one in asked if one.family == family]
        common = Counter(normalised(one.answer) for one in ours).most_common(1)[0][1] / len(ours)
        among = [len(one.choices) or guesses.get(family, 0) for one in ours]
        guess = sum(1 / number for number in among if number) / len(ours)
        total += max(common, guess) * len(ours)
    return total / len(asked)


def too_few(asked: Sequence[Asked]) -> bool:
    """Whether `chance` may be too high: a family has so few questions that its commonest answer says little."""
    return min(Counter(one.family for one in asked).values()) < FEW


def needed(share: float, count: int, within: float = WITHIN) -> int:
    """How many questions it takes to know an accuracy to `within`, in 95 of 100 cases, if `share` of `count` are right.

    From the normal interval around Wilson's centre, which is not at 0 or 1 with few questions.
    """
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    return math.ceil(z * z * centre * (1 - centre) / within**2)


def wilson(correct: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval, within 0 to 1, of the share `correct / count`."""
    z = 1.96
    share, spread = correct / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # Rounding errors may put them just outside.
    return max(0.0, centre - half), min(1.0, centre + half)


def resample(scores: np.ndarray, clips: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean scores of `RESAMPLES` bootstrap samples of whole clips, the same for all columns (paired).

    Args:
        scores: (Q, C) bool or floats, one per question and column: whether an answer is right, say.
        clips: (Q,) the clip of each question.

    Returns:
        (RESAMPLES, C) float64.
    """
    names, place = np.unique(clips, return_inverse=True)
    sums = np.zeros((len(names), scores.shape[1]))
    np.add.at(sums, place, scores)
    sizes = np.bincount(place).astype(float)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return (drawn @ sums) / (drawn @ sizes)[:, None]


def share_interval(samples: np.ndarray, clips: int) -> tuple[float, float]:
    """The `interval` of (RESAMPLES,) samples of a share; Wilson's for `clips` clips if all samples are equal."""
    return interval(samples) or wilson(float(samples[0]) * clips, clips)


def interval(samples: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of bootstrap samples.

    None if one of them is not finite (there is nothing to retain), or if all are equal: clips that are all alike say
    nothing about others, however few they are.
    """
    if not np.isfinite(samples).all() or np.ptp(samples) == 0:
        return None
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


class Columns:
    """Scores of questions about clips, in columns that are compared: their means, and paired bootstrap intervals."""

    def __init__(self, scores: np.ndarray, clips: np.ndarray) -> None:
        """Args:
            scores: (Q, C), one per question and column.
            clips: (Q,) the clip of each question.
        """  # fmt: skip
        self.means: np.ndarray = scores.mean(axis=0)
        # (RESAMPLES, C): the means of the same bootstrap samples in every column.
        self.samples = resample(scores, clips)

    def mean(self, place: int) -> float:
        return float(self.means[place])

    def interval(self, place: int) -> tuple[float, float] | None:
        return interval(self.samples[:, place])

    def ratio(self, name: str, place: int, other: Columns) -> Record:
        """The mean of a column as a share of the first column of `other`, with its interval; None if that is 0."""
        whole = other.means[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = self.samples[:, place] / other.samples[:, 0]
        return {name: self.mean(place) / float(whole) if whole else None, f"{name}_interval": interval(samples)}

    def difference(self, name: str, place: int, first: int) -> Record:
        """How much higher the mean of a column is than that of another, with the interval, and whether it is a tie."""
        between = interval(self.samples[:, place] - self.samples[:, first])
        return {
            f"{name}difference": self.mean(place) - self.mean(first),
            f"{name}difference_interval": between,
            f"{name}tie": None if between is None else between[0] <= 0 <= between[1],
        }


def kept_of(records: Sequence[Record], budget: str, selector: str) -> Record:
    """What a selector kept at a budget: the mean share of tokens, the median seconds, the mean coverage radius."""
    ours = [(record["pruned"][budget][selector], record["tokens"]) for record in records]
    return {
        "kept": float(np.mean([one["kept"] / tokens for one, tokens in ours])),
        "seconds": float(np.median([one["seconds"] for one, _ in ours])),
        "delta": float(np.mean([one["delta"] for one, _ in ours])),
    }
