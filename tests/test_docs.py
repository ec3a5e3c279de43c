"""What the documents point to is there, and what they show to copy is sound."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flashvlm_cli.app import EXIT_CODES

ROOT = Path(__file__).parent.parent
SITE = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *SITE.rglob("*.md")])
FENCED = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def of_root(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """The text of a page without what it shows as code."""
    return re.sub(r"`[^`\n]*`", "code", FENCED.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by, on GitHub and on the site alike."""
    headings = re.findall(r"^#+ +(.+?)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=of_root)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), f"{target} is not there"
        assert not anchor or anchor in anchors(file), f"{target}: no heading there is called that"
        assert SITE not in page.parents or SITE in file.parents, f"{target} is not part of the site"


def test_every_page_is_in_the_sites_navigation() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.relative_to(SITE).as_posix() for page in SITE.rglob("*.md")}


def test_python_to_copy_passes_ruff(tmp_path: Path) -> None:
    for page in PAGES:
        for number, (language, code) in enumerate(FENCED.findall(page.read_text())):
            if language == "python":
                name = re.sub(r"\W", "_", of_root(page).lower())
                (tmp_path / f"{name}_{number}.py").write_text(code)
    assert len(list(tmp_path.iterdir())) > 3
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", str(tmp_path)]
    for command in (["check", "--quiet"], ["format", "--diff"]):
        ran = subprocess.run([sys.executable, "-m", "ruff", *command, *config], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("page", [ROOT / "README.md", SITE / "reference.md"], ids=of_root)
def test_exit_codes_are_those_of_the_help(page: Path) -> None:
    told = re.search(r"^\| code \| meaning \|\n\|---\|---\|\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    assert told
    assert re.findall(r"^\| (\d+) ", told[1], re.MULTILINE) == re.findall(r"^ *(\d+)  ", EXIT_CODES, re.MULTILINE)


def test_the_readme_gives_the_command_that_the_checks_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    (command,) = (line for line in lines if line.startswith("python3 -m venv"))
    assert command in (ROOT / "README.md").read_text().splitlines()
