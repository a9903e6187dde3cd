"""Every command that the pages tell a person to give: from code blocks and from `code` in the text.

>>> [command.text for command in commands() if command.page == "docs/tuning.md"]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence.md"  # commands that were given, each with what came of it
LIST = ROOT / "docs" / "commands.md"  # written from the table of these commands
_PROGRAMS = (
    r"make|python3?|pytest|pip|docker|hf|git|sbatch|ray|nvidia-smi|wandb|tensorboard|sudo|export|mkdir|dmesg|"
    r"\.venv/bin/\S+|\.ci/\S+"
)
# Variables may be set before. A program alone is a command where its name is no other word of the page.
_COMMAND = re.compile(rf"(\w+=\S+ )*(({_PROGRAMS}) \S|nvidia-smi$|dmesg$|\.ci/)")
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_BLOCK = re.compile(r"(?:^|\n\n)((?: {4}.*\n)+)")
_INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, order=True)
class Command:
    """A command and the page that tells it, as a path from the root."""

    text: str
    page: str


def pages() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in found if page not in (EVIDENCE, LIST)]


def commands() -> list[Command]:
    """All commands of all pages, each once a page, in the pages' order."""
    found = [Command(text, str(page.relative_to(ROOT))) for page in pages() for text in commands_of(page.read_text())]
    return list(dict.fromkeys(found))


def commands_of(markdown: str) -> Iterator[str]:
    """The commands of a page, with what spans lines on one, without comments."""
    joined = re.sub(r"[ \t]*\\\n\s*", " ", markdown)
    blocks = [match.strip("`") for match in _FENCE.findall(joined)] + _BLOCK.findall(_FENCE.sub("", joined))
    text = _BLOCK.sub("\n", _FENCE.sub("", joined))
    lines = [re.split(r"\s{2,}#", line)[0] for block in blocks for line in block.splitlines()]
    for candidate in [*lines, *_INLINE.findall(text)]:
        words = " ".join(candidate.split())
        if _COMMAND.match(words):
            yield words
