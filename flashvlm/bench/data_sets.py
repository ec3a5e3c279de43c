"""The data sets by name."""

from __future__ import annotations

from pathlib import Path

from flashvlm.bench.clips import Clips, Crowd, EightLooks, Generated, Needle
from flashvlm.bench.data import DataSet, Lines
from flashvlm.bench.easy_vqa import EasyVQA
from flashvlm.bench.natural import Natural, NaturalEightLooks
from flashvlm.errors import UsageError

GENERATED: dict[str, type[Generated]] = {
    kind.name: kind for kind in (Clips, EightLooks, Needle, Crowd, Natural, NaturalEightLooks)
}
NAMES = (*GENERATED, EasyVQA.name)


def data_set(name: str, questions: int = 1) -> DataSet:
    """The data set of that name, or the JSONL file; `questions` is the number per clip in a generated one.

    Raises:
        UsageError: there is none, or it cannot be used.
    """
    if name in GENERATED:
        return GENERATED[name](questions)
    if name == EasyVQA.name:
        return EasyVQA()
    if not name.endswith(".jsonl"):
        raise UsageError(f"--data takes {', '.join(NAMES)} or a .jsonl file, not {name!r}.")
    return Lines(Path(name))
