"""What a client is told when it gets no answer: an error in OpenAI's form, with the right status."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from flashvlm.errors import FlashVLMError, ModelError, UsageError, VideoError, is_out_of_memory, sentence_of
from flashvlm.options import OPTIONS, flag_of, on_command_line

FLAGS = {flag_of(name): name for name in OPTIONS}
# Python 3.13 gave this status another name.
TOO_LARGE = 413
# Of OpenAI's API, and what its clients make of them.
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class Refused(Exception):
    """A request that gets no answer.

    `status` is HTTP's, `param` the field of the request that is wrong, `code` a name for programs, and `exit_code`
    that of the command line for the same mistake.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        exit_code: int = 1,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.exit_code, self.headers = exit_code, dict(headers)

    def to_json(self) -> dict[str, Any]:
        """The body of the response."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error | {"exit_code": self.exit_code}}


def bad(message: str, param: str | None = None, code: str | None = None) -> Refused:
    """A request that makes no sense."""
    return Refused(HTTPStatus.BAD_REQUEST, message, param=param, code=code, exit_code=UsageError.exit_code)


def refusal(error: BaseException, names: Mapping[str, str]) -> Refused | None:
    """What the client is told of an error; None if it is one that only the server's log should have.

    Args:
        names: what stands for a file of this machine in messages, by the file's path.
    """
    if isinstance(error, Refused):
        return error
    if is_out_of_memory(error):
        told = "The server is out of memory for this: ask with a smaller max_pixels, max_frames or keep."
        return Refused(HTTPStatus.SERVICE_UNAVAILABLE, told, headers={"Retry-After": "10"})
    if not isinstance(error, FlashVLMError):
        return None
    message = renamed(sentence_of(error), names)
    if isinstance(error, ModelError):
        return Refused(HTTPStatus.INTERNAL_SERVER_ERROR, message, code="model_error", exit_code=error.exit_code)
    code = "video_error" if isinstance(error, VideoError) else None
    return Refused(HTTPStatus.BAD_REQUEST, message, code=code, exit_code=error.exit_code)


def renamed(message: str, names: Mapping[str, str]) -> str:
    """The message with the client's names for files, and with options named as in a request.

    Those stand in backticks: the command line, if it is the client, makes its own names of them.
    """
    for path, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        message = message.replace(path, name)

    def option(flag: re.Match[str]) -> str:
        return f"`{FLAGS[flag[0]]}`" if flag[0] in FLAGS else flag[0]

    return re.sub("--[a-z-]+", option, on_command_line(message))
