"""The results of lmms-eval as a table in Markdown: `python -m flashvlm_cli.lmms_table FOLDER`, of its `--output_path`.

Each score stands in the column of its budget, as lmms-eval gives it, and behind it the share of the same model's score
with all tokens, which no selector changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flashvlm.errors import UsageError, sentence_of
from flashvlm.options import DEFAULT_KEEP, DEFAULT_SELECTOR, OPTIONS, TOKENS, Keep

FILES = "*results.json"
UNPRUNED = "100%"


class Row(NamedTuple):
    """What was measured alike but for the budget."""

    # The arguments of the model, and those that say which tokens are kept but for how many.
    model: str
    selector: str
    task: str
    metric: str
    documents: int


def read(folder: Path) -> dict[Row, dict[str, float]]:
    """The scores in all files of results in a folder, by budget; of two for the same, the newer.

    Raises:
        UsageError: there is none, or a file is none of lmms-eval, or of another model than `flashvlm`.
    """
    rows: dict[Row, dict[str, float]] = {}
    # The names begin with the time.
    for path in sorted(folder.rglob(FILES), key=lambda path: path.name):
        try:
            for row, keep, score in _scores(json.loads(path.read_text(encoding="utf-8"))):
                rows.setdefault(row, {})[keep] = score
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: this is no file of results of lmms-eval.") from error
    if not rows:
        raise UsageError(f"{folder}: lmms-eval has left no scores here ({FILES}).")
    return rows


def _scores(content: dict) -> Iterator[tuple[Row, str, float]]:
    config = content["config"]
    if config["model"] != "flashvlm":
        raise UsageError(f"these are results of {config['model']}, not of flashvlm.")
    arguments = dict(one.partition("=")[::2] for one in config["model_args"].split(",") if one)
    keep = str(Keep.parse(arguments.pop("keep", DEFAULT_KEEP)))
    arguments.setdefault("selector", DEFAULT_SELECTOR)
    choosing = {name for name in arguments if name in OPTIONS and OPTIONS[name].stage == TOKENS}
    model = ",".join(f"{name}={arguments[name]}" for name in sorted(arguments.keys() - choosing))
    selector = ",".join(
        [arguments["selector"], *(f"{name}={arguments[name]}" for name in sorted(choosing - {"selector"}))]
    )
    for task, scores in content["results"].items():
        documents = content["n-samples"].get(task, {}).get("effective", 0)
        for name, score in scores.items():
            # `accuracy,none` is a metric with its filter, and `accuracy_stderr,none` its error.
            metric, comma, _ = name.partition(",")
            if comma and "_stderr" not in metric and isinstance(score, int | float):
                yield Row(model, selector, task, metric, documents), keep, score


def table(rows: dict[Row, dict[str, float]]) -> str:
    """The scores as a table in Markdown, the largest budget first."""
    budgets = sorted({keep for scores in rows.values() for keep in scores} - {UNPRUNED}, key=_size, reverse=True)
    whole = {_unpruned(row): scores[UNPRUNED] for row, scores in rows.items() if UNPRUNED in scores}
    lines = [[*Row._fields, UNPRUNED, *budgets], ["---"] * (len(Row._fields) + 1 + len(budgets))]
    for row, scores in sorted(rows.items()):
        before = whole.get(_unpruned(row))
        cells = [_cell(scores.get(keep), before) for keep in budgets]
        lines.append([*map(str, row), _cell(before, None), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _unpruned(row: Row) -> Row:
    return row._replace(selector="")


def _size(budget: str) -> tuple[float, int, str]:
    keep = Keep.parse(budget)
    return float(keep.share or 0), keep.count or 0, budget


def _cell(score: float | None, whole: float | None) -> str:
    if score is None:
        return ""
    return f"{score:.4g} ({100 * score / whole:.1f} %)" if whole else f"{score:.4g}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flashvlm_cli.lmms_table", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where --output_path of lmms-eval pointed")
    try:
        print(table(read(parser.parse_args(arguments).folder)))
    except UsageError as error:
        print(sentence_of(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
