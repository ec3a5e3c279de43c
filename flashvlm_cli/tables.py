"""The tables that `flashvlm bench` prints, made from those that the benchmarks return."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashvlm import units
from flashvlm_cli.console import print_table

Row = dict[str, Any]


def print_accuracy(table: Row) -> None:
    """Print what `bench.accuracy.Run.table` returns: overall, the differences to the first selector, by family."""
    settings = table["settings"]
    overall, *families = table["sections"]
    rows = overall["rows"]
    at_most = "at most " if overall["chance_at_most"] else ""
    title = (
        f"{settings['model']} on {settings['data']} {table['begin']} to {table['end']}: "
        f"{units.plural(table['questions'], 'question')}, {at_most}{percent(overall['chance'])} by chance, "
        f"{settings['dtype']} on {settings['device']}"
    )
    if table["unreadable"]:
        questions = sum(one["questions"] for one in table["unreadable"])
        videos = units.plural(len(table["unreadable"]), "unreadable video")
        title += f"; without {units.plural(questions, 'question')} about {videos}"
    measured = {
        "right": [with_interval(row, "accuracy") for row in rows],
        "retained": [with_interval(row, "retention") for row in rows],
        "kept": [percent(row.get("kept")) for row in rows],
        "select": [units.seconds(row["seconds"]) if "seconds" in row else "" for row in rows],
        "δ": [f"{row['delta']:.3f}" if "delta" in row else "" for row in rows],
        "same": [percent(row.get("same")) for row in rows],
    }
    print_table(title, budgets_and_selectors(rows) | measured)
    others = [row for row in rows if "difference" in row]
    if others:
        points = {
            "points": [f"{100 * row['difference']:+.1f}" for row in others],
            "95 %": [span(row["difference_interval"], "+.1f", " to ") for row in others],
            "tie": ["tie" if row["tie"] else "" for row in others],
        }
        print_table(f"points right, compared with {settings['selectors'][0]}", budgets_and_selectors(others) | points)
    for budget in settings["keep"] if families else ():
        print_families(budget, families)


def print_families(budget: str, families: Sequence[Row]) -> None:
    """Print the accuracy of every selector at one budget, by family of questions."""
    places = [place for place, row in enumerate(families[0]["rows"]) if row["keep"] == budget]
    names = [families[0]["rows"][place]["selector"] or "all tokens" for place in places]
    columns = {"selector": ["questions", "chance", *names]}
    for section in families:
        chance = ("≤" if section["chance_at_most"] else "") + percent(section["chance"])
        right = [percent(section["rows"][place]["accuracy"]) for place in places]
        columns[section["family"]] = [str(section["count"]), chance, *right]
    print_table(f"right by family, {budget} kept", columns)


def print_selection(table: Row) -> None:
    """Print what `bench.selection.SelectionRun.table` returns: a table for each number of tokens."""
    settings, threads = table["settings"], units.plural(table["versions"]["threads"], "thread")
    before = None
    for size in settings["tokens"]:
        rows = [row for row in table["rows"] if row["tokens"] == size]
        measured = [row for row in rows if "skipped" not in row]
        kept = f"{units.count(measured[0]['kept'])} kept ({settings['keep']})" if measured else settings["keep"]
        grown = f", growth from {units.count(before)}" if before else ""
        title = (
            f"{units.count(size)} tokens of {settings['width']}, {kept}, "
            f"{units.plural(settings['repeats'], 'repeat')}, {threads}{grown}"
        )
        print_table(
            title,
            {
                "selector": [row["selector"] for row in rows],
                "median": [units.seconds(row["seconds"]) if "seconds" in row else "left out" for row in rows],
                "fastest": [units.seconds(row["fastest"]) if "fastest" in row else expected(row) for row in rows],
                "slowest": [units.seconds(row["slowest"]) if "slowest" in row else "" for row in rows],
                "vs paper": [times(row.get("against_paper")) for row in rows],
                "growth": [times(row.get("growth")) for row in rows],
                "peak": [size_of(row.get("peak_bytes")) for row in rows],
                "δ": [f"{row['delta']:.3f}" if "delta" in row else "" for row in rows],
                "δ took": [units.seconds(row["delta_seconds"]) if "delta" in row else "" for row in rows],
            },
        )
        before = size


def print_speed(table: Row, model: str) -> None:
    """Print what `bench.speed.SpeedRun.table` returns: times, sizes, and times as a multiple of two reference rows."""
    from flashvlm.bench.speed import STAGES

    rows, facts, video, machine = table["rows"], table["model"], table["video"], table["machine"]
    name = f"a {video['kind']} clip" if video["kind"] else Path(video["path"]).name
    title = (
        f"{model} ({facts['dtype']} on {facts['device']}, {units.plural(machine['threads'], 'thread')}) on {name}: "
        f"{table['frames']} frames of {video['width']} × {video['height']}, {units.timestamp(video['duration'])}; "
        f"medians of {table['settings']['repeats']}"
    )
    took = {stage: [units.seconds(row["seconds"][stage]) for row in rows] for stage in STAGES}
    took["first token"] = [units.seconds(row["seconds"]["time_to_first_token"]) for row in rows]
    print_table(title, encoders_and_budgets(rows) | took)
    sizes = {
        "encoded": [f"{row['encoded']} of {table['moments']}" for row in rows],
        "tokens": [units.count(row["tokens"]) for row in rows],
        "KV cache": [size_of(row["kv_cache_bytes"]) for row in rows],
        "tokens/s": ["" if row["tokens_a_second"] is None else f"{row['tokens_a_second']:.3g}" for row in rows],
        "peak memory": [size_of(row["peak_bytes"]) for row in rows],
    }
    print_table("encoded moments, kept tokens, and what that takes", encoders_and_budgets(rows) | sizes)
    # The first row is transformers', the second ours with all tokens.
    heads = {"decode": "decode", "encode": "encode", "prefill": "prefill", "first token": "first"}
    less = {head: [times(row[f"{name}_ratio"]) for row in rows[1:]] for head, name in heads.items()}
    print_table("times less than transformers at 100%", encoders_and_budgets(rows[1:]) | less)
    if rows[2:]:
        heads = {"prefill": "prefill", "first token": "first"}
        less = {head: [times(row[f"{name}_to_unpruned"]) for row in rows[2:]] for head, name in heads.items()}
        print_table("times less than flashvlm at 100%", encoders_and_budgets(rows[2:]) | less)


def budgets_and_selectors(rows: Sequence[Row]) -> dict[str, list[str]]:
    return {"keep": [row["keep"] for row in rows], "selector": [row["selector"] or "all tokens" for row in rows]}


def encoders_and_budgets(rows: Sequence[Row]) -> dict[str, list[str]]:
    return {name: [row[name] for row in rows] for name in ("encoder", "keep")}


def with_interval(row: Row, name: str) -> str:
    """`93.4% (92.5–94.3)`; empty if the row has no such figure."""
    between = span(row.get(f"{name}_interval"), ".1f", "–")
    return percent(row.get(name)) + (f" ({between})" if between else "")


def span(interval: tuple[float, float] | None, form: str, to: str) -> str:
    return "" if interval is None else to.join(format(100 * end, form) for end in interval)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"


def size_of(number: int | None) -> str:
    return "" if number is None else units.scaled(number, "B")


def expected(row: Row) -> str:
    """How long a selector that was left out would have taken, in brackets."""
    return f"({'too long' if row['skipped'] is None else units.seconds(row['skipped'])})"
