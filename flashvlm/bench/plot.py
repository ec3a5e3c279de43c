"""Plots accuracy against budget; the only module that needs matplotlib (the optional extra `bench`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashvlm.errors import UsageError
from flashvlm.files import check_plot

# Okabe and Ito's colours, which colour-blind people can distinguish too (https://jfly.uni-koeln.de/color/); the first
# is for the selector that the others are compared with. Markers and dashes distinguish lines of the same colour.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":")


def check(path: Path) -> None:
    """Refuse now what `draw` would refuse at the end of a long run.

    Raises:
        UsageError: the file name has no suffix of a supported format, or matplotlib is not installed.
        OutputError: it cannot be written.
    """
    check_plot(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("`plot` needs matplotlib: install it with pip install 'flashvlm[bench]'.") from None


def draw(table: dict[str, Any], path: Path) -> None:
    """Draw the overall section of `accuracy.summarise`: one line per selector, and the first's interval as a band."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    overall = table["sections"][0]
    unpruned, *rows = overall["rows"]
    settings = table["settings"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for place, selector in enumerate(settings["selectors"]):
        ours = sorted((row for row in rows if row["selector"] == selector), key=lambda row: row["kept"])
        if not ours:
            continue
        shares = [100 * row["kept"] for row in ours]
        accuracies = [100 * row["accuracy"] for row in ours]
        turn, colour = divmod(place, len(COLOURS))
        axes.plot(
            shares,
            accuracies,
            label=selector,
            color=COLOURS[colour],
            linestyle=DASHES[turn % len(DASHES)],
            linewidth=1.4 if place else 2.4,
            marker=MARKERS[(place + turn) % len(MARKERS)],
            markersize=5,
            zorder=2 if place else 3,
        )
        # A wide one would cover the plot.
        if place == 0 and not table["needed"]:
            low, high = zip(*(row["accuracy_interval"] for row in ours), strict=True)
            axes.fill_between(
                shares, [100 * x for x in low], [100 * x for x in high], color=COLOURS[0], alpha=0.15, linewidth=0
            )
    axes.axhline(100 * unpruned["accuracy"], color="0.35", linestyle="--", linewidth=1, label="all tokens", zorder=1)
    if not overall["chance_at_most"]:
        axes.axhline(100 * overall["chance"], color="0.6", linestyle=":", linewidth=1, label="chance", zorder=1)
    axes.set_xscale("log")
    axes.set_xticks(sorted({round(100 * row["kept"], 1) for row in rows}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g} %"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g} %"))
    axes.set_xlabel("visual tokens kept")
    axes.set_ylabel("right answers")
    asked = f"{settings['model']} on {settings['data']}, {table['questions']} questions"
    if table["needed"]:
        asked += f"\n(known to {100 * table['known_to']:.0f} points; to {100 * table['within']:.0f} points, it takes "
        asked += f"about {table['needed']} questions)"
    axes.set_title(asked, loc="left")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=150)
