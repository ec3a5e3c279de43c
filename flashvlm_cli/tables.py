"""The tables that `flashvlm bench` prints, made from those that the benchmarks return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flashvlm import units
from flashvlm_cli.console import print_remark, print_table

Row = dict[str, Any]


def print_accuracy(table: Row) -> None:
    """Print what `bench.run.Run.table` returns for an accuracy run: overall, against the first selector, by family."""
    settings = table["settings"]
    overall, *families = table["sections"]
    rows = overall["rows"]
    chance = "" if overall["chance_at_most"] else f"{percent(overall['chance'])} by chance, "
    title = (
        f"{measured_on(table)}: {units.plural(table['questions'], 'question')}, "
        f"{chance}{settings['dtype']} on {settings['device']}{left_out(table)}"
    )
    measured = {
        "right": [with_interval(row, "accuracy") for row in rows],
        "retained": [with_interval(row, "retention") for row in rows],
        "kept": cells(rows, "kept", percent),
        "select": cells(rows, "seconds", units.seconds),
        "δ": cells(rows, "delta", "{:.3f}".format),
        "same": cells(rows, "same", percent),
    }
    print_table(title, budgets_and_selectors(rows) | measured, keys=2)
    if said := notes(table):
        print_remark(" ".join(said))
    likely = {
        "nats": [with_interval(row, "nats", "{:.3f}", " to ") for row in rows],
        "kept right": [with_interval(row, "kept_right") for row in rows],
    }
    print_table(
        "log-likelihood of the right answer, and the share still right of those right with all tokens",
        budgets_and_selectors(rows) | likely,
        keys=2,
    )
    others = [row for row in rows if "difference" in row]
    if others:
        points = {
            "points": [f"{100 * row['difference']:+.1f}" for row in others],
            "95 %": cells(others, "difference_interval", lambda ends: " to ".join(f"{100 * end:+.1f}" for end in ends)),
            "tie": ["tie" if row["tie"] else "" for row in others],
        } | differences(others, "nats_difference", "nats")
        print_table(
            f"points right, compared with {settings['selectors'][0]}", budgets_and_selectors(others) | points, keys=2
        )
    for budget in settings["keep"] if families else ():
        print_families(budget, families)


def print_frames(table: Row) -> None:
    """Print what `bench.run.Run.table` returns for an accuracy run over several numbers of frames."""
    settings, rows = table["settings"], table["rows"]
    title = (
        f"{measured_on(table)}: {units.plural(table['questions'], 'question')}, "
        f"{settings['dtype']} on {settings['device']}{left_out(table)}"
    )
    measured = {
        "tokens": cells(rows, "tokens", "{:,.0f}".format),
        "right": [with_interval(row, "accuracy") for row in rows],
        "against": ["" if row["selector"] is None else f"all of {row['reference']} frames" for row in rows],
        "times": [with_interval(row, "times", "{:.2f}") for row in rows],
        "tie": ["tie" if row.get("tie") else "" for row in rows],
    }
    print_table(title, {"frames": cells(rows, "frames", str)} | budgets_and_selectors(rows) | measured, keys=3)


def notes(table: Row) -> list[str]:
    """What there are too few questions for, and how many it would take."""
    said, overall = [], table["sections"][0]
    if overall["chance_at_most"]:
        said.append(
            f"What is right by chance is not known: that takes {table['chance_takes']} questions of each family."
        )
    if table["needed"]:
        said.append(
            f"{units.plural(table['questions'], 'question')} tell these accuracies to {100 * table['known_to']:.0f} "
            f"points; to {100 * table['within']:.0f} points, it takes about {units.count(table['needed'])}."
        )
    return said


def print_fidelity(table: Row) -> None:
    """Print what `bench.run.Run.table` returns for a fidelity run: overall, against the first selector, the shares."""
    settings, rows = table["settings"], table["rows"]
    title = (
        f"{measured_on(table)}: {units.plural(table['questions'], 'question')}, unpruned answers of "
        f"{table['answer_tokens']:.1f} tokens, {settings['dtype']} on {settings['device']}{left_out(table)}"
    )
    measured = {
        "KL": [with_interval(row, "kl", "{:.3f}") for row in rows],
        "same token": [with_interval(row, "agreement") for row in rows],
        "same answer": [with_interval(row, "same") for row in rows],
    }
    print_table(title, budgets_and_selectors(rows) | measured, keys=2)
    further = {
        "times": [with_interval(row, "perplexity", "{:.3f}") for row in rows],
        "kept": cells(rows, "kept", percent),
        "select": cells(rows, "seconds", units.seconds),
        "δ": cells(rows, "delta", "{:.3f}".format),
    }
    print_table(
        "perplexity of the unpruned answers: how many times that with all tokens",
        budgets_and_selectors(rows) | further,
        keys=2,
    )
    others = [row for row in rows if "difference" in row]
    if others:
        compared = differences(others, "difference", "KL") | {"tie": ["tie" if row["tie"] else "" for row in others]}
        title = f"KL (nats a token), compared with {settings['selectors'][0]}"
        print_table(title, budgets_and_selectors(others) | compared, keys=2)
    shares = table["shares"]
    print_table(
        f"share to keep for a KL of at most {table['within']:g} nats a token",
        {
            "selector": [row["selector"] for row in shares],
            "share": [("≤ " if row["at_most"] else "") + with_interval(row, "share") for row in shares],
        },
    )


def measured_on(table: Row) -> str:
    """`demo on clips 2000 to 2299`"""
    settings = table["settings"]
    return f"{settings['model']} on {settings['data']} {table['begin']} to {table['end']}"


def left_out(table: Row) -> str:
    """What of the videos could not be read; nothing if all could."""
    if not table["unreadable"]:
        return ""
    questions = sum(one["questions"] for one in table["unreadable"])
    videos = units.plural(len(table["unreadable"]), "unreadable video")
    return f"; without {units.plural(questions, 'question')} about {videos}"


def differences(rows: Sequence[Row], name: str, head: str) -> dict[str, list[str]]:
    """Columns of a difference in nats and its interval."""
    return {
        head: [f"{row[name]:+.3f}" for row in rows],
        f"{head} 95 %": cells(rows, f"{name}_interval", lambda ends: " to ".join(f"{end:+.3f}" for end in ends)),
    }


def print_families(budget: str, families: Sequence[Row]) -> None:
    """Print the accuracy of every selector at one budget, by family of questions."""
    places = [place for place, row in enumerate(families[0]["rows"]) if row["keep"] == budget]
    names = [families[0]["rows"][place]["selector"] or "all tokens" for place in places]
    columns = {"selector": ["questions", "chance", *names]}
    for section in families:
        chance = "?" if section["chance_at_most"] else percent(section["chance"])
        right = [percent(section["rows"][place]["accuracy"]) for place in places]
        # A file of questions may have a family of any name.
        name = section["family"] or "(none)"
        columns[f"{name} (family)" if name in columns else name] = [str(section["count"]), chance, *right]
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
                "median": [once or "left out" for once in cells(rows, "seconds", units.seconds)],
                "fastest": [units.seconds(row["fastest"]) if "fastest" in row else expected(row) for row in rows],
                "slowest": cells(rows, "slowest", units.seconds),
                "vs paper": cells(rows, "against_paper", times),
                "growth": cells(rows, "growth", times),
                "peak": cells(rows, "peak_bytes", size_of),
                "δ": cells(rows, "delta", "{:.3f}".format),
                "δ took": cells(rows, "delta_seconds", units.seconds),
            },
        )
        before = size


def print_speed(table: Row, model: str) -> None:
    """Print what `bench.speed.SpeedRun.table` returns: times, sizes, and times as a multiple of two reference rows."""
    from flashvlm.bench.speed import STAGES

    rows, facts, video, machine = table["rows"], table["model"], table["video"], table["machine"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    # What tells rows apart.
    keys = len(encoders_and_budgets(rows))
    name = f"a {video['kind']} clip" if video["kind"] else Path(video["path"]).name
    title = (
        f"{model} ({', '.join(dtypes)} on {facts['device']}, {units.plural(machine['threads'], 'thread')}) on {name}: "
        f"{table['frames']} frames of {video['width']} × {video['height']}, {units.timestamp(video['duration'])}; "
        f"medians of {table['settings']['repeats']}"
    )
    took = {stage: [units.seconds(row["seconds"][stage]) for row in rows] for stage in STAGES}
    took["first token"] = [units.seconds(row["seconds"]["time_to_first_token"]) for row in rows]
    print_table(title, encoders_and_budgets(rows) | took, keys=keys)
    sizes = {
        "encoded": [f"{row['encoded']} of {table['moments']}" for row in rows],
        "tokens": cells(rows, "tokens", units.count),
        "KV cache": cells(rows, "kv_cache_bytes", size_of),
        "tokens/s": cells(rows, "tokens_a_second", "{:.3g}".format),
        "peak memory": cells(rows, "peak_bytes", size_of),
    }
    print_table("encoded moments, kept tokens, and what that takes", encoders_and_budgets(rows) | sizes, keys=keys)
    # The first row is transformers', the second ours with all tokens.
    heads = {"decode": "decode", "encode": "encode", "prefill": "prefill", "first token": "first"}
    less = {head: cells(rows[1:], f"{name}_ratio", times) for head, name in heads.items()}
    print_table("times less than transformers at 100%", encoders_and_budgets(rows[1:]) | less, keys=keys)
    if rows[2:]:
        heads = {"prefill": "prefill", "first token": "first"}
        less = {head: cells(rows[2:], f"{name}_to_unpruned", times) for head, name in heads.items()}
        print_table("times less than flashvlm at 100%", encoders_and_budgets(rows[2:]) | less, keys=keys)
    if others := [row for row in rows if row["same_ratios"]]:
        heads = {"encode": "encode", "prefill": "prefill", "generate": "generate", "first token": "time_to_first_token"}
        less = {head: cells([row["same_ratios"] for row in others], stage, times) for head, stage in heads.items()}
        print_table(f"times less than the same in {dtypes[0]}", encoders_and_budgets(others) | less, keys=keys)


def cells(rows: Sequence[Row], name: str, form: Callable[[Any], str]) -> list[str]:
    """One figure of every row; empty where a row has none."""
    return ["" if row.get(name) is None else form(row[name]) for row in rows]


def budgets_and_selectors(rows: Sequence[Row]) -> dict[str, list[str]]:
    return {"keep": cells(rows, "keep", str), "selector": [row["selector"] or "all tokens" for row in rows]}


def encoders_and_budgets(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What tells the rows of a table of `bench speed` apart."""
    names = ("dtype", "encoder", "keep") if any(row["same_ratios"] for row in rows) else ("encoder", "keep")
    return {name: cells(rows, name, str) for name in names}


def with_interval(row: Row, name: str, form: str = "", between: str = "–") -> str:
    """`93.4% (92.5–94.3)`, or in another form than percent; empty if the row has no such figure."""
    if row.get(name) is None:
        return ""
    value, ends = (form.format(row[name]) if form else percent(row[name])), row[f"{name}_interval"]
    if ends is None:
        return value
    shown = [form.format(end) if form else f"{100 * end:.1f}" for end in ends]
    return f"{value} ({between.join(shown)})"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"


def size_of(number: int) -> str:
    return units.scaled(number, "B")


def expected(row: Row) -> str:
    """How long a selector that was left out would have taken, in brackets."""
    return f"({'too long' if row['skipped'] is None else units.seconds(row['skipped'])})"
