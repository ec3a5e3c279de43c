"""An option is declared once: all that is made from that has every option."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from flashvlm.options import FRAMES, OF_ROWS, OPTIONS, AskOptions, Option, Sampling, flag_of, watching
from flashvlm_cli.app import main

REFERENCE = Path(__file__).parent.parent / "docs" / "reference.md"
HEADS = ("| option | default | | a row of `batch` |", "|---|---|---|---|")


def row_of(name: str, option: Option) -> str:
    """An option's row of the table in the reference."""
    default = "on" if option.default is True else "off" if option.default is False else f"`{option.default}`"
    flag = f"`{flag_of(name)} {option.metavar or ''}".strip() + "`"
    cells = (
        flag,
        default if option.default is not None else option.unset,
        option.help,
        "may have its own" * option.row,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("|  |", "| |")


def test_the_table_of_the_reference_is_what_is_declared() -> None:
    table = "\n".join([*HEADS, *(row_of(name, option) for name, option in OPTIONS.items())])
    assert table in REFERENCE.read_text(), f"docs/reference.md needs this table:\n{table}"


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("ask", set()),
        ("chat", set()),
        ("batch", set()),
        ("serve", {"subtitles"}),
        ("inspect", {"system", "subtitles", "max_new_tokens", "temperature", "top_p", "top_k", "check"}),
        ("bench accuracy", {"selector", "subtitles", "temperature", "top_p", "top_k", "check", "cache"}),
        ("bench speed", {"cache", "subtitles", "check"}),
    ],
)
def test_commands_have_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, without: set[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*command.split(), "--help"]) == 0
    offered = set(re.findall(r"│ (--[a-z-]+)", capsys.readouterr().out))
    expected = {name: flag_of(name) in offered for name in OPTIONS}
    assert expected == {name: name not in without for name in OPTIONS}


def test_every_field_is_an_option() -> None:
    names = [one.name for one in (*fields(AskOptions), *fields(Sampling)) if one.name != "sampling"]
    assert sorted(names) == sorted(OPTIONS) == sorted(AskOptions().flat())


def test_the_key_of_the_cache_has_what_decides_which_frames_are_seen() -> None:
    looked = watching(AskOptions())
    assert {*looked, *looked["sampling"]} - {"sampling"} == {n for n, one in OPTIONS.items() if one.stage == FRAMES}


def test_the_help_of_batch_names_the_columns_that_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "--help"]) == 0
    named = f"The columns {', '.join(OF_ROWS[:-1])} and {OF_ROWS[-1]} are options of their row"
    assert named in " ".join(capsys.readouterr().out.split())
