"""Figures as a person reads them: three significant digits and a unit."""

from __future__ import annotations

SCALES = ("", "k", "M", "G", "T", "P", "E")
WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def count(number: int) -> str:
    """`12345` is `12,345`."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """`1` and `token` give `1 token`, `2` gives `2 tokens`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def in_words(number: int) -> str:
    """`768` is `seven hundred and sixty-eight`: whole numbers below a million, as num2words (PyPI) writes them."""
    if number < 20:
        return WORDS[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{WORDS[number % 10]}" if number % 10 else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    many, rest = divmod(number, unit)
    joined = " and " if rest < 100 else ", "
    return f"{in_words(many)} {name}" + (joined + in_words(rest) if rest else "")


def scaled(number: float, unit: str) -> str:
    """`88_100_000` and `B` give `88.1 MB`: powers of 1000."""
    power = 0
    while number >= 999.5 and power < len(SCALES) - 1:
        number /= 1000
        power += 1
    figure = f"{number:.0f}" if power == 0 else _three_digits(number)
    return f"{figure} {SCALES[power]}{unit}"


def seconds(duration: float) -> str:
    """An elapsed time: `4.1 ms`, `412 ms`, `1.84 s`, `75.2 s`."""
    if duration < 0.9995:
        return f"{_three_digits(duration * 1000) if duration >= 0.001 else f'{duration * 1000:.1f}'} ms"
    return f"{_three_digits(duration)} s"


def duration(seconds: float) -> str:
    """A time to wait: `0:07`, `12:30`, `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def timestamp(at: float) -> str:
    """A time in a video, as `--start` takes it: `0:07.5`, `1:30`, `1:02:03`; tenths only in the first ten minutes."""
    tenths = round(at * 10) if at < 600 else round(at) * 10
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    whole, tenth = divmod(tenths, 10)
    fraction = f".{tenth}" if tenth else ""
    return f"{hours}:{minutes:02}:{whole:02}{fraction}" if hours else f"{minutes}:{whole:02}{fraction}"


def percent(part: float, whole: float) -> str:
    """A share: `10.0%`, `0.03%`, `100%`."""
    share = 100 * part / whole if whole else 0.0
    if share >= 99.95:
        return "100%" if part >= whole else "99.9%"
    return f"{share:.1f}%" if share >= 0.1 or not share else f"{share:.2g}%"


def factor(before: float, after: float) -> str:
    """How many times smaller: `9.4×`, `104×`; empty if nothing was saved."""
    ratio = before / after if after else 1.0
    if ratio < 1.05:
        return ""
    return f"{ratio:.0f}×" if ratio >= 99.95 else f"{ratio:.1f}×"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 99.95 else f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"
