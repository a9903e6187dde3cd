"""The pages: links lead somewhere, commands are commands, examples are the files that they say they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from bench.compose import CONFIG_FOLDER, compose

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
_MAKE = re.compile(r'make (?:sweep|tune)\s+ARGS="([^"]*)"')


def text_of(page: Path) -> str:
    return page.read_text().replace("\\\n", " ")


def slug(heading: str) -> str:
    """As code hosts name the anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = [line.lstrip("#") for line in target.read_text().splitlines() if line.startswith("#")]
            assert anchor in map(slug, headings), f"{page.name}: {link}"


def test_every_test_named_on_the_page_of_faults_exists() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    there = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    page = (ROOT / "docs" / "maintainers" / "faults.md").read_text()
    assert set(re.findall(r"\btest_\w+\b(?!\.py)", page)) <= there
    paths = re.findall(r"[\w/]*test_\w+\.py", page)
    assert paths
    for path in paths:
        assert any(f"/{file.relative_to(ROOT).as_posix()}".endswith(f"/{path}") for file in files), path


def commands() -> list[tuple[str, list[str]]]:
    """(page, overrides) of every sweep or run that a page tells to start; `...` stands for the reader's own."""
    found = []
    for page in PAGES:
        for line in text_of(page).splitlines():
            line = re.split(r"\s{2,}#|`", line.strip().removeprefix("`"))[0].strip()
            if match := _MAKE.search(line):
                overrides = shlex.split(match[1])
            elif re.match(r"python -m bench (-m )?[\w.]+=", line):
                overrides = [word for word in shlex.split(line)[3:] if word != "-m"]
            else:
                continue
            # An extra's sweeper or launcher need not be installed.
            if not any("..." in word or word.startswith(("-", "hydra/")) for word in overrides):
                found.append((page.name, overrides))
    return found


@pytest.mark.parametrize(("page", "overrides"), commands(), ids=lambda value: value if isinstance(value, str) else None)
def test_commands_compose(page: str, overrides: list[str]) -> None:
    given = [word for word in overrides if not word.startswith("rates=")]  # a file that `make tune` writes first
    assert compose(given, multirun=True)


def test_commands_were_found() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("example", ["method/full_adam8bit.yaml", "task/gsm8k.yaml"])
def test_an_example_is_the_file_that_it_says_it_is(example: str) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"((?:^    .*\n)+)", page[page.index(f"`conf/{example}` is a true example") :], re.M)
    assert block is not None
    assert yaml.safe_load(block[1]) == yaml.safe_load((CONFIG_FOLDER / example).read_text())
