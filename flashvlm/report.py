"""Report: the figures of one answer, as dataclasses. `ask --json` prints them, and its summary draws them.

This module imports no torch, so that the command line can use it at once.
"""

from __future__ import annotations

import hashlib
import os
import platform
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flashvlm
from flashvlm import units

if TYPE_CHECKING:
    from torch import Tensor

    from flashvlm.encode import Encoded
    from flashvlm.options import AskOptions
    from flashvlm.selection.result import Selection

# How many characters of a text the `repr` of an answer shows.
LONGEST = 60


@dataclass(frozen=True)
class BeforeAfter:
    """One figure for all visual tokens (`before`) and for the kept ones (`after`)."""

    before: int
    after: int


@dataclass(frozen=True)
class ModelFacts:
    """The model that answered: the name it was asked for by, its folder, family, device and dtype."""

    name: str
    source: str
    family: str
    device: str
    dtype: str
    revision: str | None = None


@dataclass(frozen=True)
class VideoFacts:
    """The video as displayed. Lengths in pixels, times in seconds, `fps` the average frame rate (0 for a still).

    `size` (bytes) and `modified` (nanoseconds since 1970) tell whether the file is still the one that was looked at.
    """

    path: str
    width: int
    height: int
    frame_count: int
    fps: float
    duration: float
    rotation: int = 0
    size: int = 0
    modified: int = 0
    # What it was given as, if not as a path: frames, or a temporary file that is kept as long as this.
    given: Any = field(default=None, repr=False, compare=False)

    @property
    def still(self) -> bool:
        """Whether it is a still picture."""
        return not self.fps

    @property
    def source(self) -> Any:
        """What its frames are read from again."""
        return self.path if self.given is None else self.given

    def of(self, video: Any, status: os.stat_result) -> VideoFacts:
        """The same facts, of this `flashvlm.video.Video`, whose file had this status before it was read."""
        given = None if isinstance(video, str | Path) else video
        return replace(self, path=str(video), size=status.st_size, modified=status.st_mtime_ns or 0, given=given)


@dataclass(frozen=True)
class Area:
    """A rectangle of the displayed picture, in fractions of its height and width from the top left corner."""

    top: float = 0.0
    left: float = 0.0
    bottom: float = 1.0
    right: float = 1.0


@dataclass(frozen=True)
class Moment:
    """One temporal group: what the language model sees at one step of its time axis.

    A picture is one moment. One that the model sees in tiles is two: the grid of all its tiles, and the whole picture
    once more, in fewer cells; where both show the same place, either, both or neither may be kept.

    `timestamps` are the times of its frames in seconds. `kept` lists the kept tokens' cells as (row, column) of the
    group's `grid_height` x `grid_width` grid, row by row; `important` says for each whether it was kept for the
    question (true) or for coverage (false). `tokens` also counts a class token, which stands for a whole frame and has
    no cell: `class_token` says the same for it, and is None if it was dropped or the model has none. `like` is the
    number, from 0, of the earlier moment that this one looks like and whose tokens it reuses; None if it has its own.
    `small`: it was only seen in a small frame. `placed`: where in the picture the cells lie is known; otherwise the
    grid is a single row. `video` is the number of its video, from 0.

    Two fields are for pictures, and not in the JSON. `nearest` says for each cell, row by row, which kept token is
    nearest to the cell's own, and so stands for it: by the number of its cell, counted from 0 over all moments. `first`
    is the number of this moment's first cell; -1 - `first` is its class token.
    """

    timestamps: tuple[float, ...]
    tokens: int
    grid_height: int
    grid_width: int
    kept: tuple[tuple[int, int], ...]
    important: tuple[bool, ...]
    class_token: bool | None = None
    like: int | None = None
    small: bool = False
    placed: bool = True
    video: int = 0
    nearest: tuple[int, ...] = ()
    first: int = 0

    @property
    def kept_count(self) -> int:
        """How many tokens were kept, including the class token."""
        return len(self.kept) + (self.class_token is not None)

    @property
    def important_count(self) -> int:
        """How many tokens were kept for the question, including the class token."""
        return sum(self.important) + bool(self.class_token)


@dataclass(frozen=True)
class SelectionFacts:
    """How the tokens were chosen."""

    selector: str
    # How many were kept.
    budget: int
    # How many of them for the question, and how many for coverage; both 0 if the selector does not distinguish them.
    important: int
    diverse: int
    # The measured coverage radius: the largest distance, by `metric`, from any token to its nearest kept one.
    delta: float
    metric: str = "cosine"
    # Whether kept tokens were averaged with the dropped ones they stand for.
    merged: bool = False
    # How similar dropped tokens were to the tokens that stand for them (1: equal): a mean for every round of thinning
    # within the moments, and last one for how well each moment is shown by the moment before, if there are several.
    # Empty if the selector does not measure it.
    redundancy: tuple[float, ...] = ()
    # True if these similarities were low from the start: no token is like another, and what was dropped is lost.
    little_to_drop: bool = False


@dataclass(frozen=True)
class StageSeconds:
    """Wall-clock seconds of each stage.

    If the feature cache had the video, `decode` is the time it took to find it there, and `encode` is 0.

    `time_to_first_token` counts from the call to the first generated token, without model loading; `total` to the last
    one. Neither includes measuring the coverage radius, which took `delta`.
    """

    load: float
    decode: float
    encode: float
    select: float
    prefill: float
    generate: float
    delta: float
    time_to_first_token: float
    total: float


@dataclass(frozen=True)
class Difference:
    """Where an answer would have gone on differently: the number of the token, from 0, and what stands there.

    `said` is the likeliest text of this token from the kept visual tokens, `unpruned` that from all of them; an empty
    one ends the answer.
    """

    token: int
    said: str
    unpruned: str


@dataclass(frozen=True)
class Check:
    """What the unpruned model would have said: it was given the answer token by token, in one prefill (`--check`).

    `same`: at every place of the answer, the likeliest next token is the same from all visual tokens as from the kept
    ones; decoded greedily, the unpruned answer is then this one. Otherwise `first_difference` says where it is not.
    `kl` is the Kullback-Leibler divergence of the next-token distribution from the unpruned one, in nats: the mean over
    the tokens of the answer. `seconds` is what the check took, which is in none of the `StageSeconds`.
    """

    same: bool
    kl: float
    first_difference: Difference | None
    seconds: float


@dataclass(frozen=True)
class Answer:
    """The answer to one question and every figure of its summary; `to_json()` is the documented JSON object.

    `cached`: the video was not decoded and encoded for this question, but for an earlier one (of this run, or kept in
    the feature cache). `area` is the part of the picture that the moments' grids divide into cells: what the model saw
    of it. If the question is on several videos, `video` and `area` are the first one's, and `videos` and `areas` hold
    all; `moments` are those of the first, then of the second, and so on. `history` holds the earlier questions that the
    model read, each with its answer; they are part of `prompt_tokens`.
    """

    question: str
    answer: str
    generated_tokens: int
    model: ModelFacts
    video: VideoFacts
    frames: int
    tokens: BeforeAfter
    prompt_tokens: BeforeAfter
    kv_cache_bytes: BeforeAfter
    prefill_flops: BeforeAfter
    selection: SelectionFacts
    seconds: StageSeconds
    moments: tuple[Moment, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    warnings: tuple[str, ...] = field(default=())
    cached: bool = False
    area: Area = field(default=Area())
    videos: tuple[VideoFacts, ...] = ()
    areas: tuple[Area, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    # How many lines of subtitles joined the question.
    subtitles: int = 0
    # Only if it was asked for.
    check: Check | None = None

    def __repr__(self) -> str:
        first = f"first token after {units.seconds(self.seconds.time_to_first_token)}"
        return f"<Answer {_short(self.answer)} to {_short(self.question)} on {_about(self)}, {first}>"

    def _repr_html_(self) -> str | None:
        """The report, as notebooks show it."""
        from flashvlm import page

        return page.snippet(self)

    def to_json(self) -> dict[str, Any]:
        """The answer as dicts, tuples, strings and numbers, as `json.dumps` takes them."""
        return _to_json(self)


@dataclass(frozen=True)
class Signal:
    """One measurement of every token: for each moment the values of its cells, row by row, without class tokens."""

    moments: tuple[tuple[float, ...], ...]

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return min(map(min, self.moments)), max(map(max, self.moments))

    def to_json(self) -> dict[str, Any]:
        """The range, and the mean and highest value of each moment."""
        low, high = self.range
        means = [sum(values) / len(values) for values in self.moments]
        return {"lowest": low, "highest": high, "mean": means, "most": [max(values) for values in self.moments]}


@dataclass(frozen=True)
class Inspection:
    """Which tokens of a video a selector keeps for a question, or for none, and what it based that on; no answer.

    `signals` holds `saliency` (attention received in the vision encoder), `relevance` if there is a question (how far a
    token's similarity to its words stands out from that of the others; from 1 on it is beyond noise), `score` if the
    selector has one, and `distance` (to the nearest kept token). `seconds` has `load`, `decode`, `encode`,
    `select` and `delta`. `videos` and `areas` are as in `Answer`.
    """

    question: str | None
    model: ModelFacts
    video: VideoFacts
    frames: int
    tokens: BeforeAfter
    selection: SelectionFacts
    seconds: dict[str, float]
    moments: tuple[Moment, ...]
    area: Area
    signals: dict[str, Signal]
    settings: dict[str, Any]
    versions: dict[str, str]
    warnings: tuple[str, ...] = field(default=())
    cached: bool = False
    videos: tuple[VideoFacts, ...] = ()
    areas: tuple[Area, ...] = ()

    def __repr__(self) -> str:
        asked = "" if self.question is None else f" for {_short(self.question)}"
        return f"<Inspection{asked} of {_about(self)}, by {self.selection.selector}>"

    def _repr_html_(self) -> str | None:
        """The report, as notebooks show it."""
        from flashvlm import page

        return page.snippet(self)

    def to_json(self) -> dict[str, Any]:
        """The inspection as dicts, tuples, strings and numbers, as `json.dumps` takes them; signals are summarised."""
        plain = _to_json(replace(self, signals={}))
        return plain | {"signals": {name: signal.to_json() for name, signal in self.signals.items()}}


def answer_of(plain: dict[str, Any]) -> Answer:
    """The answer that this is the JSON of (`Answer.to_json`).

    Raises:
        LookupError, TypeError: it is none.
    """
    pairs = ("tokens", "prompt_tokens", "kv_cache_bytes", "prefill_flops")
    chosen, check = plain["selection"], plain.get("check")
    return Answer(
        **plain
        | {name: BeforeAfter(**plain[name]) for name in pairs}
        | {
            "model": ModelFacts(**plain["model"]),
            "video": VideoFacts(**plain["video"]),
            "videos": tuple(VideoFacts(**one) for one in plain.get("videos", ())),
            "selection": SelectionFacts(**chosen | {"redundancy": tuple(chosen["redundancy"])}),
            "seconds": StageSeconds(**plain["seconds"]),
            "moments": tuple(_moment_of(one) for one in plain["moments"]),
            "warnings": tuple(plain["warnings"]),
            "area": Area(**plain["area"]),
            "areas": tuple(Area(**one) for one in plain.get("areas", ())),
            "history": tuple((asked, said) for asked, said in plain.get("history", ())),
            "check": None if check is None else _check_of(check),
        }
    )


def _check_of(plain: dict[str, Any]) -> Check:
    place = plain["first_difference"]
    return Check(**plain | {"first_difference": None if place is None else Difference(**place)})


def _moment_of(plain: dict[str, Any]) -> Moment:
    kept = tuple((row, column) for row, column in plain["kept"])
    important, timestamps = tuple(plain["important"]), tuple(plain["timestamps"])
    return Moment(**plain | {"kept": kept, "important": important, "timestamps": timestamps})


# Both have a video, its moments and what was chosen from them.
Seen = Answer | Inspection


def _about(seen: Seen) -> str:
    named = f"{len(seen.videos)} videos" if seen.videos else Path(seen.video.path).name
    return f"{named}: {seen.tokens.after} of {seen.tokens.before} tokens"


def _short(text: str) -> str:
    """A text as it is written in Python, its end left out if it is long."""
    return repr(text if len(text) <= LONGEST else text[: LONGEST - 3] + "...")


def _to_json(seen: Seen) -> dict[str, Any]:
    seen = replace(
        seen,
        video=replace(seen.video, given=None),
        videos=tuple(replace(video, given=None) for video in seen.videos),
        moments=tuple(replace(moment, nearest=()) for moment in seen.moments),
    )
    plain = asdict(seen)
    for facts in (plain["video"], *plain["videos"]):
        del facts["given"]
    for moment in plain["moments"]:
        del moment["nearest"], moment["first"]
    if plain.get("check", ...) is None:
        del plain["check"]
    if not seen.videos:
        # What tells several videos apart.
        del plain["videos"], plain["areas"]
        for moment in plain["moments"]:
            del moment["video"]
    if not plain.get("history"):
        plain.pop("history", None)
    return plain


def by_video(seen: Seen) -> list[Seen]:
    """What was seen of each video, as if it were the only one; the figures are still those of all together."""
    videos = zip(seen.videos or [seen.video], seen.areas or [seen.area], strict=True)
    return [
        replace(
            seen,
            video=facts,
            area=area,
            moments=tuple(replace(moment, video=0) for moment in seen.moments if moment.video == number),
            videos=(),
            areas=(),
        )
        for number, (facts, area) in enumerate(videos)
    ]


def distinguishes(seen: Seen) -> bool:
    """Whether there is a question and the selector says which tokens are for it."""
    return seen.question is not None and seen.selection.important + seen.selection.diverse == seen.tokens.after


def opening(seen: Seen) -> int:
    """The number of the moment to look at first: where most tokens were kept for the question, else at all."""
    apart = distinguishes(seen) and seen.selection.important > 0
    kept = [moment.important_count if apart else moment.kept_count for moment in seen.moments]
    return kept.index(max(kept))


def overlap(one: Seen, other: Seen) -> int:
    """How many tokens both keep; they must be of the same video with the same sampling."""
    shared = 0
    for mine, theirs in zip(one.moments, other.moments, strict=True):
        shared += len(set(mine.kept) & set(theirs.kept))
        shared += mine.class_token is not None and theirs.class_token is not None
    return shared


def settings_of(looked: AskOptions, chosen: AskOptions) -> dict[str, Any]:
    """The options that the video was looked at with, and those that tokens were chosen with, as JSON."""
    from flashvlm.options import watching

    return (
        asdict(chosen)
        | watching(looked)
        | {
            "keep": chosen.keep.count or str(chosen.keep),
            "selector": chosen.selector_name,
        }
    )


def selection_facts(options: AskOptions, selection: Selection) -> SelectionFacts:
    """How many tokens were kept and why, and how well they cover the others; measures the radius."""
    count, important = len(selection.indices), int(selection.important.sum())
    return SelectionFacts(
        options.selector_name,
        count,
        important,
        # A selector that does not distinguish them has neither.
        count - important if selection.distinguishes else 0,
        selection.delta,
        options.metric,
        options.merge or selection.merges,
        selection.redundancy,
        selection.little_to_drop,
    )


def signal(values: Tensor, videos: Sequence[Encoded]) -> Signal:
    """(N,) values of the tokens of all videos, by moment and cell."""
    parts = values.float().split([len(encoded.tokens) for encoded in videos])
    return Signal(
        tuple(
            tuple(group[encoded.class_tokens :].tolist())
            for encoded, part in zip(videos, parts, strict=True)
            for group in part.split(encoded.group_sizes)
        )
    )


def _with_nearest(made: Sequence[Moment], videos: Sequence[Encoded], selection: Selection) -> tuple[Moment, ...]:
    """The moments of the videos with their `nearest` and `first`."""
    classes = [encoded.class_tokens for encoded in videos for _ in range(encoded.groups)]
    # The number of each token; those of class tokens are negative.
    numbers: list[int] = []
    firsts: list[int] = []
    first = 0
    for moment, before in zip(made, classes, strict=True):
        firsts.append(first)
        numbers += [-1 - first] * before
        numbers += range(first, first + moment.grid_height * moment.grid_width)
        first += moment.grid_height * moment.grid_width
    kept = [numbers[index] for index in selection.indices.tolist()]
    nearest = [kept[place] for place in selection.nearest.tolist()]
    with_all, begin = [], 0
    for moment, before, first in zip(made, classes, firsts, strict=True):
        end = begin + before + moment.grid_height * moment.grid_width
        with_all.append(replace(moment, nearest=tuple(nearest[begin + before : end]), first=first))
        begin = end
    return tuple(with_all)


def moments(videos: Sequence[Encoded], selection: Selection) -> tuple[Moment, ...]:
    """What was kept of each temporal group of each video, by the row and column of its cells."""
    made: list[Moment] = []
    first = 0
    for number, encoded in enumerate(videos):
        here = (selection.indices >= first) & (selection.indices < first + len(encoded.tokens))
        kept = zip((selection.indices[here] - first).tolist(), selection.important[here].tolist(), strict=True)
        earlier = len(made)
        for moment in _moments(encoded, kept):
            like = None if moment.like is None else moment.like + earlier
            made.append(replace(moment, like=like, video=number))
        first += len(encoded.tokens)
    return _with_nearest(made, videos, selection)


def _moments(encoded: Encoded, chosen: Iterable[tuple[int, bool]]) -> Iterator[Moment]:
    """The moments of a video, of which these tokens were kept, each for the question or not."""
    frames = -(-len(encoded.timestamps) // encoded.groups)
    begins = [0, *accumulate(encoded.group_sizes)]
    kept: list[list[tuple[int, int]]] = [[] for _ in range(encoded.groups)]
    important: list[list[bool]] = [[] for _ in range(encoded.groups)]
    class_token: list[bool | None] = [None] * encoded.groups
    like = list(range(encoded.groups)) if encoded.sources is None else encoded.sources.tolist()
    for index, for_question in chosen:
        group = bisect_right(begins, index) - 1
        place = index - begins[group]
        if place < encoded.class_tokens:
            class_token[group] = for_question
            continue
        kept[group].append(divmod(place - encoded.class_tokens, encoded.grids[group][1]))
        important[group].append(for_question)
    for group, size in enumerate(encoded.group_sizes):
        yield Moment(
            # All moments of a picture show it.
            encoded.timestamps[group * frames : (group + 1) * frames] or encoded.timestamps[:1],
            size,
            *encoded.grids[group],
            tuple(kept[group]),
            tuple(important[group]),
            class_token[group],
            None if like[group] == group else like[group],
            encoded.small is not None and bool(encoded.small[group]),
            encoded.placed,
        )


def versions() -> dict[str, str]:
    """What figures depend on besides the settings: the versions of flashvlm, Python and the libraries underneath."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    # To ask for them takes a fifth of the time of a quick answer.
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "transformers", "decord2", "av", "pillow")}
    return {"flashvlm": flashvlm.__version__, "python": platform.python_version(), **packages}


@cache
def code_digest() -> str:
    """A digest of the package's own sources, because its version does not change while they are being worked on."""
    digest = hashlib.sha256()
    for path in sorted(Path(flashvlm.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
