"""Selectors of one's own for `bench accuracy`: `FILE.py:FUNCTION`, of `Inputs` and returning a `Selection`."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from flashvlm.bench.ablation import ABLATIONS, ablated
from flashvlm.errors import UsageError, known, sentence
from flashvlm.selection import Selector


def is_own(name: str) -> bool:
    """Whether a selector is named by its file."""
    return ".py:" in name


def function(name: str) -> str | Selector:
    """What `select` takes for a selector or an ablation of this name.

    Raises:
        UsageError: as for `of_file`.
    """
    if is_own(name):
        return of_file(name)
    return ablated(name) if name in ABLATIONS else name


def digest(name: str) -> str:
    """A digest of the file that a selector is in, on which results depend.

    Raises:
        UsageError: there is no such file.
    """
    path = Path(name.rpartition(":")[0])
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UsageError(f"The selector {name!r}: {path}: {error.strerror}.") from error


@cache
def of_file(name: str) -> Selector:
    """The function that `FILE.py:FUNCTION` names; the file is run once in a process.

    Raises:
        UsageError: there is no such file or function, or the file cannot be run.
    """
    file, _, function = name.rpartition(":")
    digest(name)
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(
            f"The selector {name!r}: {file} fails: {type(error).__name__}: {sentence(str(error))}"
        ) from error
    functions = tuple(each for each, value in vars(module).items() if callable(value) and not isinstance(value, type))
    return getattr(module, known(f"function in {file}:", function, functions))
