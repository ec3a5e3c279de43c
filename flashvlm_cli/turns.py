"""What a conversation asks, for the programs of others that hand one over message by message."""

from __future__ import annotations

from collections.abc import Iterable

from flashvlm.errors import UsageError


def turns(messages: Iterable[tuple[str, str]]) -> tuple[str | None, list[tuple[str, str]], str]:
    """The system prompt, the earlier questions with their answers, and the newest question.

    Args:
        messages: the role (`system`, `user` or `assistant`) and the text of each.

    Raises:
        UsageError: the last message is an answer.
    """
    system, said = None, [""]
    for role, text in messages:
        if role == "system":
            system = text
        elif (role == "assistant") == (len(said) % 2 == 1):
            said.append(text)
        else:
            # Two messages of one side in a row.
            said[-1] = f"{said[-1]}\n{text}".strip()
    if len(said) % 2 == 0:
        raise UsageError("The last message is an answer: there is no question.")
    *earlier, question = said
    return system, list(zip(earlier[::2], earlier[1::2], strict=True)), question
