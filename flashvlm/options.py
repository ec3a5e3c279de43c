"""What a user may ask for: the options of one question, each declared once, and how they are parsed.

All that is known of an option stands in the field of `AskOptions` or `Sampling` that holds its value. From there come
the command line, what the user may set for good (`defaults.py`), the settings of `chat`, the columns of `batch`, the
options of `bench`, the table in docs/reference.md, the key of the feature cache, and what is refused.

This module imports neither torch nor transformers, so that the command line can refuse bad usage at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from decimal import ROUND_HALF_UP, Decimal
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, Unpack

from flashvlm.errors import UsageError, known
from flashvlm.models import DEFAULT_MODEL
from flashvlm.selection import BY_CONTENT, METRICS, SELECTORS, Selector, name_of

DEFAULT_KEEP = "10%"
DEFAULT_SELECTOR = BY_CONTENT
ENCODES = ("changed", "cells", "all")
SEEKS = ("fast", "exact")
LOOKS = ("once", "twice")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
# Below this, logits divided by the temperature overflow.
LEAST_TEMPERATURE = 0.0001

# Qwen's own practice for video: https://github.com/QwenLM/Qwen2-VL, qwen-vl-utils.
DEFAULT_FPS = 2.0
MAX_FPS = 100_000
MIN_FRAMES = 4
# The area that one token stands for, in pixels of a frame.
TOKEN_PIXELS = 28 * 28
# The most pixels of a frame, and of a still picture, where nothing else is said. A full HD screen and a page of A4 at
# 150 dots per inch are not made smaller.
FRAME_PIXELS = 768 * TOKEN_PIXELS
PICTURE_PIXELS = 4 * FRAME_PIXELS

# Where an option matters. FRAMES decide what the encoder makes of a video, and nothing else does.
FRAMES = "Which frames"
TOKENS = "Which tokens"
ANSWER = "The answer"
MODEL = "The model"
READING = "Reading the file"

# The types of fields that are checked, as their annotations name them.
KINDS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "a text"),
}


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its name and its type, which are those of its field."""

    default: Any
    # A sentence or two.
    help: str
    # FRAMES, TOKENS, ANSWER, READING or MODEL; the panel of the help that it stands in.
    stage: str
    # What the help writes for the value; nothing for a switch.
    metavar: str | None = None
    # What is done if the value is None.
    unset: str = ""
    # Completes the beginning of a value (`incomplete`) to values, each with its meaning or "".
    suggest: Callable[[str], list[tuple[str, str]]] | None = None
    # Gets what errors call the option, and a value; raises UsageError if the value is out of range.
    check: Callable[[str, Any], None] = lambda name, value: None
    # Makes the value of what a user writes, if that is more than a text or a number; may get what errors call it, too.
    parse: Callable[..., Any] | None = None
    # The option that it cannot be given with.
    instead_of: str = ""
    # What sets it, if that is not `--` and its name.
    flags: tuple[str, ...] = ()
    # Whether a row of a batch may have its own, in a column of this name: as a text, or in any way that `parse` takes.
    row: bool = False
    # Its field's type: a key of KINDS, or the name of a class.
    kind: str = ""


def option(default: Any, help: str, stage: str, **more: Any) -> Any:
    """A field of a dataclass that is an option; the arguments are those of `Option`."""
    return field(default=default, metadata={"option": Option(default, help, stage, **more)})


def allowed(test: Callable[[Any], bool], otherwise: str) -> Callable[[str, Any], None]:
    """A check that refuses what fails the test; `otherwise` says what is wrong, with {} for the value."""

    def check(name: str, value: Any) -> None:
        if not test(value):
            raise UsageError(f"{name} {otherwise.format(value)}.")

    return check


def at_least(least: int, what: str = "") -> Callable[[str, Any], None]:
    """A check that refuses what is less; `what` says what the least is."""
    return allowed(lambda value: value >= least, f"must be at least {least}{what}, not {{}}")


def among(values: Mapping[str, str]) -> Callable[[str], list[tuple[str, str]]]:
    """Completions of one of the values, which stand with their meanings."""
    return lambda incomplete: [pair for pair in values.items() if pair[0].startswith(incomplete)]


def some_of(values: Iterable[str]) -> Callable[[str], list[tuple[str, str]]]:
    """Completions of the last value in a list with commas."""

    def suggest(incomplete: str) -> list[tuple[str, str]]:
        before, comma, last = incomplete.rpartition(",")
        return [(before + comma + value, "") for value in values if value.startswith(last)]

    return suggest


def one_of(*values: str) -> dict[str, Any]:
    """What there is to say of an option that takes these values only."""
    told = f"is one of {', '.join(values)}, not {{!r}}"
    return {"suggest": among(dict.fromkeys(values, "")), "check": allowed(values.__contains__, told)}


def is_device(value: str) -> bool:
    """Whether a device has this name, on some machine: cuda:1 is the second GPU."""
    return value in DEVICES or re.fullmatch(r"cuda:\d+", value) is not None


def named(kind: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What there is to say of an option that takes a name."""
    return {"suggest": among(dict.fromkeys(names, "")), "check": lambda name, value: known(kind, value, names)}


def kind_of(one: Field) -> str:
    """What a field is annotated with, without the None that it may also be."""
    return str(one.type).removesuffix(" | None")


def argument(name: str) -> str:
    """What messages call an argument: on the command line, `on_command_line` makes its option of that."""
    return f"`{name}`"


def check_fields(options: object, called: Callable[[str], str] = argument) -> None:
    """Refuse values of another type than their field's, and values that their option does not allow.

    From Python anything may come, and some of it would be taken for True. What a user may write as a text becomes its
    value, and numbers of other libraries become Python's, which JSON knows.

    Args:
        called: what messages call the value of a field.

    Raises:
        UsageError: a value makes no sense, or two that exclude each other are given.
    """
    for one in fields(options):  # type: ignore[arg-type]
        value, about, kind = getattr(options, one.name), one.metadata.get("option"), kind_of(one)
        if value is None and kind != one.type:
            continue
        object.__setattr__(options, one.name, checked(value, kind, about, called(one.name)))
        if about and about.instead_of and getattr(options, about.instead_of) is not None:
            raise UsageError(f"Give {called(one.name)} or {called(about.instead_of)}, not both.")


def checked(value: Any, kind: str, about: Option | None, called: str) -> Any:
    """A value as its field holds it.

    Args:
        kind: the field's type, without None.
        about: the option that it is of, if any.
        called: what errors call it.

    Raises:
        UsageError: it is of another type, or the option does not allow it.
    """
    if about and about.parse:
        value = about.parse(value, called)
    if kind in KINDS:
        wanted, told = KINDS[kind]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise UsageError(f"{called} must be {told}, not {value!r}.")
        if isinstance(value, Real) and not isinstance(value, bool | int | float):
            value = int(value) if isinstance(value, Integral) else float(value)
    if about:
        about.check(called, value)
    return value


def declared(owner: type) -> dict[str, Option]:
    """The options of a dataclass by their names, those of a field `sampling` among them."""
    return {
        one.name: replace(one.metadata["option"], kind=kind_of(one))
        for outer in fields(owner)
        for one in (fields(Sampling) if outer.name == "sampling" else [outer])
    }


def flag_of(name: str) -> str:
    """The option of the command line that sets a field."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Keep:
    """How many visual tokens to keep: a share of them, a count, enough to cover all others within a radius `delta`, or,
    with none of these, as many as the video itself calls for (`auto`).

    Raises:
        UsageError: more than one of them is given, or a value is of another type or out of range.
    """

    share: Decimal | None = None
    count: int | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.share, self.count, self.delta)) > 1:
            raise UsageError("Keep takes a share, a count or a delta, one of the three.")
        if self.share is not None and not (isinstance(self.share, Decimal) and 0 < self.share <= 1):
            raise UsageError(f"share must be a Decimal, more than 0 and at most 1, not {self.share!r}.")
        check_fields(self)
        if self.count is not None and self.count < 1:
            raise UsageError(f"count must be at least 1, not {self.count}.")
        if self.delta is not None and not 0 <= self.delta < math.inf:
            raise UsageError(f"delta must be a distance of 0 or more, not {self.delta}.")

    @classmethod
    def parse(cls, value: str | float | Keep, name: str = "`keep`") -> Keep:
        """Parse `10%`, a fraction with a point (`0.1`, `1.0`, a Python float), a count (`256`), `delta=0.3` or `auto`.

        Raises:
            UsageError: the value is 0 or less, more than 100 %, or of another form.
        """
        if isinstance(value, Keep):
            return value
        text = str(value).strip()
        wanted = f"{name} takes a share such as 10% or 0.1, a count such as 256, delta=0.3 or auto; not {text!r}."
        if isinstance(value, bool):
            raise UsageError(wanted)
        if isinstance(value, float):
            text = format(Decimal(text), "f") if math.isfinite(value) else text
            text = text if "." in text else text + ".0"
        if text == "auto":
            return cls()
        if radius := re.fullmatch(r"delta\s*=\s*([0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)", text):
            return cls(delta=float(radius[1]))
        if re.fullmatch(r"[0-9]{1,18}", text):
            if int(text) == 0:
                raise UsageError(f"{name} must leave at least one token; 0 keeps none.")
            return cls(count=int(text))
        if re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*%", text):
            share = Decimal(text.rstrip("% ")) / 100
        elif re.fullmatch(r"[0-9]*\.[0-9]*", text) and text != ".":
            share = Decimal(text)
        else:
            raise UsageError(wanted)
        if not 0 < share <= 1:
            raise UsageError(f"{name} must be more than 0 and at most 100%, not {text}.")
        return cls(share=share)

    def budget(self, tokens: int) -> int | Literal["auto"] | None:
        """The number of tokens to keep of `tokens`: rounded half up, at least one, at most all; `auto` if the video
        decides, None if a radius does."""
        if self.delta is not None:
            return None
        if self.count is not None:
            return min(self.count, tokens)
        if self.share is None:
            return "auto"
        return max(1, int((self.share * tokens).to_integral_value(ROUND_HALF_UP)))

    @property
    def by_content(self) -> bool:
        """Whether the video decides how many tokens are kept."""
        return self.share is None and self.count is None

    def __str__(self) -> str:
        if self.delta is not None:
            return f"delta={self.delta:g}"
        if self.count is not None:
            return str(self.count)
        return "auto" if self.share is None else f"{(self.share * 100).normalize():f}%"


def parse_time(text: Any, name: str = "A time") -> Any:
    """Parse a time in a video, in seconds: `90`, `1:30`, `0:01:30.5`. What is no text is returned as it is.

    Raises:
        UsageError: anything else.
    """
    if not isinstance(text, str):
        return text
    if not re.fullmatch(r"([0-9]{1,9}:){0,2}[0-9]{1,9}(\.[0-9]*)?", text.strip()):
        raise UsageError(f"{name} is given as 90, 1:30 or 0:01:30.5, not {text!r}.")
    *larger, seconds = text.strip().split(":")
    parts = [int(part) for part in larger]
    if (parts and float(seconds) >= 60) or (len(parts) == 2 and parts[1] >= 60):
        raise UsageError(f"{name} has more than 59 minutes or seconds after a colon: {text!r}.")
    total = 0
    for part in parts:
        total = total * 60 + part
    return total * 60 + float(seconds)


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at: evenly spaced from `start` to `end` (seconds; None is the video's own).

    `fps` frames a second (None is 2), at least `MIN_FRAMES` and at most `max_frames`; or exactly `frames` of them, if
    the video has that many.

    Raises:
        UsageError: both `fps` and `frames` are given, a value is out of range, or the end is not after the start.
    """

    fps: float | None = option(
        None,
        f"Frames to look at per second, at least {MIN_FRAMES} in all.",
        FRAMES,
        metavar="F",
        unset=f"{DEFAULT_FPS:g}; some models: a number of frames in all",
        check=allowed(lambda fps: 0 < fps <= MAX_FPS, f"must be more than 0 and at most {MAX_FPS}, not {{:g}}"),
        instead_of="frames",
    )
    frames: int | None = option(
        None,
        "Exactly this many frames, instead of --fps and --max-frames.",
        FRAMES,
        metavar="N",
        check=at_least(1),
        instead_of="fps",
    )
    max_frames: int = option(64, "The most frames that --fps may give.", FRAMES, metavar="N", check=at_least(1))
    start: float | None = option(
        None,
        "Look at the video from here on: 90, 1:30, 0:01:30.5.",
        FRAMES,
        metavar="T",
        unset="the video's start",
        check=allowed(lambda at: 0 <= at < math.inf, "must be a time in seconds, 0 or more; not {:g}"),
        parse=parse_time,
        row=True,
    )
    end: float | None = option(
        None,
        "Look at the video up to here.",
        FRAMES,
        metavar="T",
        unset="the video's end",
        check=allowed(math.isfinite, "must be a time in seconds, not {}"),
        parse=parse_time,
        row=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.end is not None and self.end <= (self.start or 0):
            raise UsageError(f"`end` ({self.end:g} s) must come after `start` ({self.start or 0:g} s).")


class Arguments(TypedDict, total=False):
    """Every option as an argument of Python, with what it may be given as; for type checkers and editors."""

    keep: Keep | str | float
    selector: str | Selector
    metric: str
    merge: bool
    fps: float | None
    frames: int | None
    max_frames: int
    start: str | float | None
    end: str | float | None
    max_pixels: int | None
    min_pixels: int | None
    encode: str
    seek: str
    look: str
    system: str | None
    subtitles: str | None
    max_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int
    timeout: float
    max_source_pixels: int
    check: bool
    cache: bool
    # Instead of its fields, or what they change.
    sampling: Sampling


@dataclass(frozen=True, init=False)
class AskOptions:
    """The options of one question, as `flashvlm ask` names them: `AskOptions(keep="10%", fps=1, start="1:30")`.

    Raises:
        UsageError: a value outside its range, or an option that does not exist.
    """

    keep: Keep = option(
        Keep.parse(DEFAULT_KEEP),
        "Visual tokens to keep: 10%, 0.1 or 256; 100% prunes nothing. delta=0.3 covers all tokens to that radius; auto "
        "lets the video decide.",
        TOKENS,
        metavar="SHARE|COUNT|delta=D|auto",
        suggest=among(
            {
                "10%": "a tenth of the tokens",
                "5%": "a twentieth of them",
                "100%": "all: no pruning",
                "256": "this many tokens",
                "auto": "the video decides",
                "delta=0.3": "as many as cover all others to this radius",
            }
        ),
        parse=Keep.parse,
        row=True,
    )
    selector: str | Selector = option(
        DEFAULT_SELECTOR,
        f"How tokens are chosen: {', '.join(SELECTORS)}.",
        TOKENS,
        metavar="NAME",
        row=True,
        suggest=among(dict.fromkeys(SELECTORS, "")),
        # From Python, a function of one's own.
        check=lambda name, value: None if callable(value) else known("selector", value, SELECTORS),
    )
    metric: str = option(
        "cosine",
        f"How distance between tokens is measured: {', '.join(METRICS)}.",
        TOKENS,
        metavar="NAME",
        **named("metric", METRICS),
    )
    merge: bool = option(
        False, "Average dropped tokens into the kept ones nearest to them.", TOKENS, flags=("--merge/--no-merge",)
    )
    sampling: Sampling = Sampling()
    max_pixels: int | None = option(
        None,
        "The most pixels per frame, or of a still picture.",
        FRAMES,
        metavar="P",
        unset=f"{FRAME_PIXELS}; of a picture {PICTURE_PIXELS}, or as many tiles as the checkpoint says",
        check=at_least(TOKEN_PIXELS, " (one token)"),
    )
    min_pixels: int | None = option(
        None,
        "The fewest pixels per frame: smaller ones are enlarged.",
        FRAMES,
        metavar="P",
        unset="the checkpoint's own",
        check=at_least(TOKEN_PIXELS, " (one token)"),
    )
    encode: str = option(
        "changed",
        "changed: a moment that looks like an earlier one reuses its tokens; cells: so do the cells of a moment that "
        "look as before; all: every moment is encoded.",
        FRAMES,
        metavar="WHICH",
        **one_of(*ENCODES),
    )
    seek: str = option(
        "fast",
        "fast: key frames instead, if each frame to look at has one nearby; exact: the very frames.",
        FRAMES,
        metavar="HOW",
        **one_of(*SEEKS),
    )
    look: str = option(
        "once",
        "once: full-size frames; twice: small ones, then the ends and what is asked about at full size.",
        FRAMES,
        metavar="HOW",
        **one_of(*LOOKS),
    )
    system: str | None = option(None, "System prompt.", ANSWER, metavar="TEXT", unset="the checkpoint's own")
    subtitles: str | None = option(
        None,
        "Lines of this file (.srt, .vtt) within the part looked at join the question; auto: of the file beside the "
        "video, or of the track in it.",
        ANSWER,
        metavar="FILE|auto",
        unset="none",
        suggest=among({"auto": "the file beside the video, or the track in it"}),
    )
    max_new_tokens: int = option(128, "Longest answer, in tokens.", ANSWER, metavar="N", check=at_least(1))
    temperature: float = option(
        0.0,
        "0 always takes the likeliest token.",
        ANSWER,
        metavar="X",
        check=allowed(
            lambda value: value == 0 or LEAST_TEMPERATURE <= value < math.inf,
            f"must be 0, or {LEAST_TEMPERATURE} or more, not {{:g}}",
        ),
    )
    top_p: float | None = option(
        None,
        "With --temperature, take one of the likeliest tokens that have this probability together.",
        ANSWER,
        metavar="P",
        unset="the checkpoint's own",
        check=allowed(lambda share: 0 < share <= 1, "must be more than 0 and at most 1, not {:g}"),
    )
    top_k: int | None = option(
        None,
        "With --temperature, take one of this many likeliest tokens.",
        ANSWER,
        metavar="N",
        unset="the checkpoint's own",
        check=at_least(1),
    )
    seed: int = option(
        0,
        "Random seed of --temperature and --selector random.",
        ANSWER,
        metavar="N",
        check=allowed(lambda seed: -(2**63) <= seed < 2**63, "must fit into 64 bits, which {} does not"),
    )
    check: bool = option(
        False,
        "Say whether the unpruned model would have answered the same, at the price of one unpruned prefill.",
        ANSWER,
    )
    timeout: float = option(
        120.0,
        "Give a video up after so many seconds of decoding without a frame.",
        READING,
        metavar="S",
        check=allowed(
            lambda seconds: 0 < seconds <= 10**6, "must be more than 0 and at most 1000000 seconds, not {:g}"
        ),
    )
    max_source_pixels: int = option(
        8192 * 8192,
        "The most pixels that a frame of the file may have.",
        READING,
        metavar="P",
        check=at_least(1),
    )
    cache: bool = option(
        False, "Store what the encoder makes of the video, and reuse it.", MODEL, flags=("--cache/--no-cache",)
    )

    def __init__(self, **given: Unpack[Arguments]) -> None:
        values: dict[str, Any] = {**{one.name: one.default for one in fields(self)}, **given}
        sampling = values.pop("sampling")
        if not isinstance(sampling, Sampling):
            raise UsageError(f"`sampling` must be a Sampling, not {sampling!r}.")
        for name in values:
            known("option", name, tuple(OPTIONS))
        times = {name: values.pop(name) for name in given if hasattr(Sampling, name)}
        values["sampling"] = replace(sampling, **times)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check_fields(self)
        if self.min_pixels is not None and self.min_pixels > self.frame_pixels:
            raise UsageError(
                f"`min_pixels` ({self.min_pixels}) must not be more than `max_pixels` ({self.frame_pixels})."
            )
        # A function says itself what it can be asked for.
        if self.keep.by_content and self.selector != BY_CONTENT and not callable(self.selector):
            raise UsageError(
                f"`keep` {self.keep} is for `selector` {BY_CONTENT}; {self.selector} takes a share or a count."
            )

    @property
    def frame_pixels(self) -> int:
        """The most pixels that a frame may have."""
        return self.max_pixels or FRAME_PIXELS

    @property
    def picture_pixels(self) -> int:
        """The most pixels that a still picture may have."""
        return self.max_pixels or PICTURE_PIXELS

    def flat(self) -> dict[str, Any]:
        """The value of every option by its name, those of `sampling` among them."""
        return {name: getattr(self.sampling if hasattr(Sampling, name) else self, name) for name in OPTIONS}

    @property
    def selector_name(self) -> str:
        """What the selector is called."""
        return name_of(self.selector)

    def changed(self, **given: Unpack[Arguments]) -> AskOptions:
        """These options with other values for some.

        Raises:
            UsageError: a value makes no sense, alone or with the others, or there is no such option.
        """
        values: Any = {**vars(self), **given}
        return AskOptions(**values)


def suggest_models(incomplete: str) -> list[tuple[str, str]]:
    from flashvlm.models import ALIASES

    return [(alias.name, alias.description) for alias in ALIASES.values() if alias.name.startswith(incomplete)]


@dataclass(frozen=True)
class Loading:
    """Which model answers, and how it is loaded: the arguments of `VideoQA.from_pretrained`, as commands name them."""

    model: str = option(
        DEFAULT_MODEL,
        "Hub id, folder or alias (see 'flashvlm models').",
        MODEL,
        metavar="ID|PATH|ALIAS",
        suggest=suggest_models,
    )
    revision: str | None = option(None, "Branch, tag or commit on the hub.", MODEL, metavar="REV", unset="the newest")
    device: str = option(
        "auto",
        "Where the model runs; cuda:1 is the second GPU.",
        MODEL,
        metavar="|".join(DEVICES),
        suggest=among(dict.fromkeys(DEVICES, "")),
        check=allowed(is_device, f"is one of {', '.join(DEVICES)}, not {{!r}}"),
    )
    dtype: str = option(
        "auto",
        "auto (bfloat16 if the device computes in it at full speed), float32, bfloat16 or float16; on a CPU, int8.",
        MODEL,
        metavar="DTYPE",
        **one_of(*DTYPES),
    )


@dataclass(frozen=True)
class Talk:
    """What `chat` takes, besides options of a question and of the model."""

    memory: bool | None = option(
        None,
        "Let the model read the earlier questions and answers.",
        ANSWER,
        unset="on, unless it was trained on single questions",
        flags=("--memory/--no-memory",),
    )


# Every option by its name, in the order of the help.
OPTIONS = declared(AskOptions)
# Those that change no answer: where features come from, and what reading a file may cost.
NO_MATTER = ("cache", *(name for name, one in OPTIONS.items() if one.stage == READING))
# Those that a row of a batch may have its own value of.
OF_ROWS = tuple(name for name, one in OPTIONS.items() if one.row)

# What a message may name besides (see `on_command_line`): arguments of `VideoQA.from_pretrained`, and files.
OTHERS = ("model", "revision", "device", "dtype", "overlay", "report", "plot")


def on_command_line(message: str) -> str:
    """A message with the option in place of every argument that it names: --max-frames in place of `max_frames`."""
    return re.sub(f"`({'|'.join((*OPTIONS, *OTHERS))})`", lambda found: flag_of(found[1]), message)


def watching(options: AskOptions) -> dict[str, Any]:
    """The options that decide what the encoder makes of a video: those of FRAMES.

    Questions that agree on them share decoding and encoding, in memory and in the feature cache.
    """
    others = {name for name, one in OPTIONS.items() if one.stage != FRAMES}
    return {name: value for name, value in asdict(options).items() if name not in others}
