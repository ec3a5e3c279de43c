"""What a conversation asks, for the programs of others that hand one over message by message."""

from __future__ import annotations

from collections.abc import Iterable


def turns(messages: Iterable[tuple[str, str]]) -> tuple[str | None, list[tuple[str, str]], str]:
    """The system prompt, the earlier questions with their answers, and the newest question.

    Args:
        messages: the role (`system`, `user` or `assistant`) and the text of each; the last one is a question.
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
    *earlier, question = said
    return system, list(zip(earlier[::2], earlier[1::2], strict=True)), question
