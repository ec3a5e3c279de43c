"""Plots accuracy and fidelity against budget; the only module that needs matplotlib (the optional extra `bench`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvlm.errors import UsageError
from flashvlm.files import check_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can distinguish too (https://jfly.uni-koeln.de/color/); the first
# is for the selector that the others are compared with. Markers and dashes distinguish lines of the same colour.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":")


def check(path: Path) -> None:
    """Refuse now what drawing would refuse at the end of a long run.

    Raises:
        UsageError: the file name has no suffix of a supported format, or matplotlib is not installed.
        OutputError: it cannot be written.
    """
    check_plot(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("`plot` needs matplotlib: install it with pip install 'flashvlm[bench]'.") from None


def draw_accuracy(table: dict[str, Any], path: Path) -> None:
    """Draw the overall section of `accuracy.summarise`: one line per selector, and the first's interval as a band."""
    overall = table["sections"][0]
    unpruned, *rows = overall["rows"]
    figure, axes = _curves(table, rows, "accuracy", 100)
    axes.axhline(100 * unpruned["accuracy"], color="0.35", linestyle="--", linewidth=1, label="all tokens", zorder=1)
    if not overall["chance_at_most"]:
        axes.axhline(100 * overall["chance"], color="0.6", linestyle=":", linewidth=1, label="chance", zorder=1)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:g} %")
    axes.set_ylabel("right answers")
    _save(figure, axes, path)


def draw_frames(table: dict[str, Any], path: Path) -> None:
    """Draw the rows of `frames.summarise` against tokens, each with its number of frames: one line for all tokens, and
    one per budget and selector."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(table["rows"], key=lambda row: row["frames"]):
        name = "all tokens" if row["selector"] is None else f"{row['keep']} by {row['selector']}"
        lines.setdefault(name, []).append(row)
    for place, (name, rows) in enumerate(lines.items()):
        style: dict[str, Any] = {"color": "0.35", "linestyle": "--"} if rows[0]["selector"] is None else {}
        shown = [100 * row["accuracy"] for row in rows]
        axes.plot([row["tokens"] for row in rows], shown, label=name, marker=MARKERS[place % len(MARKERS)], **style)
        for row, right in zip(rows, shown, strict=True):
            axes.annotate(f"{row['frames']}", (row["tokens"], right), (6, 0), textcoords="offset points", va="center")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda count, _: f"{count:g}")
    axes.set_xlabel("visual tokens that the model gets, of so many frames as stand beside")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:g} %")
    axes.set_ylabel("right answers")
    settings = table["settings"]
    axes.set_title(f"{settings['model']} on {settings['data']}, {table['questions']} questions", loc="left")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, axes, path)


def draw_fidelity(table: dict[str, Any], path: Path) -> None:
    """Draw the KL divergence of `fidelity.summarise`: one line per selector, and the first's interval as a band."""
    figure, axes = _curves(table, table["rows"], "kl", 1)
    within = f"within {table['within']:g}"
    axes.axhline(table["within"], color="0.35", linestyle="--", linewidth=1, label=within, zorder=1)
    if any(row["kl"] for row in table["rows"]):
        axes.set_yscale("log")
    axes.set_ylabel("KL divergence from all tokens, nats a token")
    _save(figure, axes, path)


def _curves(table: dict[str, Any], rows: list[dict[str, Any]], name: str, scale: float) -> tuple[Figure, Axes]:
    """A figure with `scale` times one value of each row against the share of tokens kept."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    settings = table["settings"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for place, selector in enumerate(settings["selectors"]):
        ours = sorted((row for row in rows if row["selector"] == selector), key=lambda row: row["kept"])
        if not ours:
            continue
        shares = [100 * row["kept"] for row in ours]
        turn, colour = divmod(place, len(COLOURS))
        axes.plot(
            shares,
            [scale * row[name] for row in ours],
            label=selector,
            color=COLOURS[colour],
            linestyle=DASHES[turn % len(DASHES)],
            linewidth=1.4 if place else 2.4,
            marker=MARKERS[(place + turn) % len(MARKERS)],
            markersize=5,
            zorder=2 if place else 3,
        )
        # A wide one would cover the plot; where all videos are alike, there is none.
        if place == 0 and not table.get("needed"):
            ends = [row[f"{name}_interval"] or (row[name], row[name]) for row in ours]
            low, high = zip(*ends, strict=True)
            axes.fill_between(
                shares, [scale * x for x in low], [scale * x for x in high], color=COLOURS[0], alpha=0.15, linewidth=0
            )
    axes.set_xscale("log")
    axes.set_xticks(sorted({round(100 * row["kept"], 1) for row in rows}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:g} %")
    axes.set_xlabel("visual tokens kept")
    asked = f"{settings['model']} on {settings['data']}, {table['questions']} questions"
    if table.get("needed"):
        asked += f"\n(known to {100 * table['known_to']:.0f} points; to {100 * table['within']:.0f} points, it takes "
        asked += f"about {table['needed']} questions)"
    axes.set_title(asked, loc="left")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=150)
