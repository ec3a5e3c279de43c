"""How the server runs, as options. Imports neither torch nor what the server needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashvlm.cache import parse_size
from flashvlm.errors import UsageError
from flashvlm.options import allowed, at_least, check_fields, option

ADDRESS = "Where it listens"
ACCESS = "Who may ask what"
LIMITS = "Limits"

DEFAULT_PORT = 8642
KEY_VARIABLE = "FLASHVLM_API_KEY"


def size(text: Any, name: str) -> Any:
    """Parse a size in bytes, such as `100MB`. What is no text is returned as it is.

    Raises:
        UsageError: it is no size.
    """
    if not isinstance(text, str):
        return text
    if not text.strip():
        raise UsageError(f"{name} takes a size such as 1GB or 100MB.")
    return parse_size(text, name)


@dataclass(frozen=True)
class Serving:
    """What `flashvlm serve` takes, besides the model and the options of `ask`.

    Raises:
        UsageError: a value is out of range.
    """

    host: str = option("127.0.0.1", "Listen at this address; 0.0.0.0 is all of this machine's.", ADDRESS, metavar="A")
    port: int = option(
        DEFAULT_PORT,
        "Listen at this port; 0 takes a free one.",
        ADDRESS,
        metavar="P",
        check=allowed(lambda port: 0 <= port < 2**16, "must be a port from 0 to 65535, not {}"),
    )
    api_key: str | None = option(
        None,
        f"Answer only who gives this key. In ${KEY_VARIABLE} it does not show in the list of processes.",
        ACCESS,
        metavar="KEY",
        unset=f"${KEY_VARIABLE}, or none is needed",
    )
    max_upload: int = option(
        100 * 10**6,
        "The largest video that a request may send or name.",
        LIMITS,
        metavar="SIZE",
        parse=size,
        check=at_least(1, " byte"),
    )
    max_waiting: int = option(
        64, "Requests at once, waiting ones included; others are told to come later.", LIMITS, check=at_least(1)
    )
    request_timeout: float = option(
        300.0,
        "Give a request up after so many seconds.",
        LIMITS,
        metavar="S",
        check=allowed(lambda seconds: 0 < seconds <= 10**6, "must be more than 0 and at most 1000000, not {:g}"),
    )
    feature_memory: int = option(
        10**9,
        "Keep what the encoder made of the last videos in memory, so many bytes of it.",
        LIMITS,
        metavar="SIZE",
        parse=size,
        check=at_least(0),
    )

    def __post_init__(self) -> None:
        check_fields(self)
