"""What a user may ask for: the options of one question, and how they are parsed.

This module imports neither torch nor transformers, so that the command line can refuse bad usage at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from numbers import Integral, Real
from typing import Any, Literal

from flashvlm.errors import UsageError, known
from flashvlm.selection import BY_CONTENT, METRICS, SELECTORS

DEFAULT_KEEP = "10%"
DEFAULT_SELECTOR = BY_CONTENT
DEFAULT_METRIC = "cosine"
ENCODES = ("changed", "all")
DEFAULT_ENCODE = "changed"
SEEKS = ("fast", "exact")
DEFAULT_SEEK = "fast"
LOOKS = ("once", "twice")
DEFAULT_LOOK = "once"
DEFAULT_MAX_NEW_TOKENS = 128
# Below this, logits divided by the temperature overflow.
LEAST_TEMPERATURE = 0.0001

# Qwen's own practice for video: https://github.com/QwenLM/Qwen2-VL, qwen-vl-utils.
DEFAULT_FPS = 2.0
MAX_FPS = 100_000
MIN_FRAMES = 4
DEFAULT_MAX_FRAMES = 64
DEFAULT_MAX_PIXELS = 768 * 28 * 28

# The options of a question that do not change what the encoder makes of the video.
AFTER_ENCODING = frozenset(
    {"keep", "selector", "metric", "merge", "system", "max_new_tokens", "temperature", "seed", "cache"}
)


KINDS: dict[type, str] = {Real: "a number", Integral: "a whole number", bool: "True or False", str: "a text"}


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
        _check_types(self, {}, {"count": Integral, "delta": Real})
        if self.count is not None and self.count < 1:
            raise UsageError(f"count must be at least 1, not {self.count}.")
        if self.delta is not None and not 0 <= self.delta < math.inf:
            raise UsageError(f"delta must be a distance of 0 or more, not {self.delta}.")

    @classmethod
    def parse(cls, value: str | float | Keep) -> Keep:
        """Parse `10%`, a fraction with a point (`0.1`, `1.0`, a Python float), a count (`256`), `delta=0.3` or `auto`.

        Raises:
            UsageError: the value is 0 or less, more than 100 %, or of another form.
        """
        if isinstance(value, Keep):
            return value
        text = str(value).strip()
        wanted = f"--keep takes a share such as 10% or 0.1, a count such as 256, delta=0.3 or auto; not {text!r}."
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
                raise UsageError("--keep must leave at least one token; 0 keeps none.")
            return cls(count=int(text))
        if re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*%", text):
            share = Decimal(text.rstrip("% ")) / 100
        elif re.fullmatch(r"[0-9]*\.[0-9]*", text) and text != ".":
            share = Decimal(text)
        else:
            raise UsageError(wanted)
        if not 0 < share <= 1:
            raise UsageError(f"--keep must be more than 0 and at most 100%, not {text}.")
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


def _check_types(options: object, kinds: Mapping[str, type], optional: Mapping[str, type]) -> None:
    """Refuse values of other types: from Python anything may come, and some of it would be taken for True.

    Numbers of other libraries become Python's, which JSON knows.

    Args:
        kinds: the type of each field.
        optional: the type of each field that may also be None.
    """
    for name, kind in {**kinds, **optional}.items():
        value = getattr(options, name)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits and not (value is None and name in optional):
            raise UsageError(f"{name} must be {KINDS[kind]}, not {value!r}.")
        if isinstance(value, Real) and not isinstance(value, bool | int | float):
            object.__setattr__(options, name, int(value) if isinstance(value, Integral) else float(value))


def parse_time(text: str, name: str = "A time") -> float:
    """Parse a time in a video, in seconds: `90`, `1:30`, `0:01:30.5`.

    Raises:
        UsageError: anything else.
    """
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

    fps: float | None = None
    frames: int | None = None
    max_frames: int = DEFAULT_MAX_FRAMES
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            # From Python, a time may be given as on the command line.
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, parse_time(given, f"--{name}"))
        _check_types(self, {"max_frames": Integral}, {"fps": Real, "frames": Integral, "start": Real, "end": Real})
        if self.fps is not None and self.frames is not None:
            raise UsageError("Give --fps or --frames, not both.")
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise UsageError(f"--fps must be more than 0 and at most {MAX_FPS}, not {self.fps:g}.")
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"--frames must be at least 1, not {self.frames}.")
        if self.max_frames < 1:
            raise UsageError(f"--max-frames must be at least 1, not {self.max_frames}.")
        for name, time in (("--start", self.start), ("--end", self.end)):
            if time is not None and not math.isfinite(time):
                raise UsageError(f"{name} must be a time in seconds, not {time}.")
        if self.start is not None and self.start < 0:
            raise UsageError(f"--start must not be negative, but is {self.start:g}.")
        if self.end is not None and self.end <= (self.start or 0):
            raise UsageError(f"--end ({self.end:g} s) must come after --start ({self.start or 0:g} s).")


@dataclass(frozen=True)
class AskOptions:
    """The options of one question, as `flashvlm ask` names them.

    `encode`: `all` moments go through the vision encoder, or only those that have `changed` from all earlier ones; the
    others reuse the tokens of the moment that they look like.
    `seek`: `exact` looks at exactly the frames that `sampling` asks for, `fast` at key frames near them if there are
    enough (see `video.decode`).
    `look`: `twice` encodes all moments small, and then the first, the last and those that the question asks about at
    full size.
    `cache`: the encoder's output is taken from the feature cache if it is there, and stored there if not.

    Raises:
        UsageError: a value outside its range.
    """

    keep: Keep = field(default_factory=lambda: Keep.parse(DEFAULT_KEEP))
    selector: str = DEFAULT_SELECTOR
    metric: str = DEFAULT_METRIC
    merge: bool = False
    sampling: Sampling = Sampling()
    max_pixels: int = DEFAULT_MAX_PIXELS
    encode: str = DEFAULT_ENCODE
    seek: str = DEFAULT_SEEK
    look: str = DEFAULT_LOOK
    system: str | None = None
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0
    cache: bool = False

    def __post_init__(self) -> None:
        # From Python, a budget may be given as on the command line.
        object.__setattr__(self, "keep", Keep.parse(self.keep))
        flags: dict[str, type] = dict.fromkeys(("merge", "cache"), bool)
        counts: dict[str, type] = dict.fromkeys(("max_pixels", "max_new_tokens", "seed"), Integral)
        _check_types(self, {**flags, **counts, "temperature": Real}, {"system": str})
        if not isinstance(self.sampling, Sampling):
            raise UsageError(f"sampling must be a Sampling, not {self.sampling!r}.")
        known("selector", self.selector, SELECTORS)
        known("metric", self.metric, METRICS)
        if self.keep.by_content and self.selector != BY_CONTENT:
            raise UsageError(
                f"--keep {self.keep} is for --selector {BY_CONTENT}; {self.selector} takes a share or a count."
            )
        modes = (("--encode", self.encode, ENCODES), ("--seek", self.seek, SEEKS), ("--look", self.look, LOOKS))
        for name, value, values in modes:
            if value not in values:
                raise UsageError(f"{name} is one of {', '.join(values)}, not {value!r}.")
        if self.max_pixels < 28 * 28:
            raise UsageError(f"--max-pixels must be at least {28 * 28} (one token), not {self.max_pixels}.")
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens must be at least 1, not {self.max_new_tokens}.")
        if self.temperature and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise UsageError(f"--temperature must be 0, or {LEAST_TEMPERATURE} or more, not {self.temperature:g}.")
        if not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"--seed must fit into 64 bits, which {self.seed} does not.")


def watching(options: AskOptions) -> dict[str, Any]:
    """The options that decide what the encoder makes of a video: all but AFTER_ENCODING, including any new ones.

    Questions that agree on them share decoding and encoding, in memory and in the feature cache.
    """
    return {name: value for name, value in asdict(options).items() if name not in AFTER_ENCODING}
