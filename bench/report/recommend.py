"""`python -m bench.report recommend results/default memory_gb=24 time_hours=2`: what to use under your limits.

    python -m bench.report recommend results/a results/b quality_tolerance=3% adapters=20

Prints plain text. Exit code 0, also where the data cannot decide; 2 with every mistake where a folder or a limit is
wrong. What is held against what: docs/recommendation.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bench.config import ConfigurationError
from bench.fairness import allowed_names
from bench.stats.limits import WORDS, Limits, limits_from_words

COMMAND = "recommend"
_WIDTH = 110


def main(arguments: Sequence[str]) -> int:
    """The command, after its name; returns the exit code."""
    given = _parser().parse_args(arguments)
    words = [word for word in given.words if "=" in word and not Path(word).is_dir()]
    folders = [word for word in given.words if word not in words]
    problems = _folder_problems(folders)
    limits, allowed = Limits(), frozenset[str]()
    try:
        limits = limits_from_words(words)
    except ConfigurationError as error:
        problems += error.problems
    try:
        allowed = frozenset() if given.allow_different is None else allowed_names(given.allow_different)
    except ConfigurationError as error:
        problems += error.problems
    if not problems:
        problems = _answer(folders, limits, words, allowed)
    for problem in problems:
        print(f"bench.report recommend: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _answer(folders: Sequence[str], limits: Limits, words: Sequence[str], allowed: frozenset[str]) -> list[str]:
    """Print the answer for every model, task and suite; returns what prevents one."""
    from bench.report.answer import groups_of  # pandas and scipy: only when there is work
    from bench.report.limit_answer import answer_of
    from bench.report.load import load

    sweep = load(*folders)
    if not sweep.records:
        unread = [f"{problem.run}/{problem.file}: {problem.reason}" for problem in sweep.problems]
        return unread or [f"{folders[0]}: no run in it (looked for */record.json); run a sweep first: make sweep"]
    for problem in sweep.problems:
        print(f"not read: {problem.run}/{problem.file}: {problem.reason}", file=sys.stderr)
    for group in groups_of(sweep, allowed=allowed, deciding_only=True):
        told = answer_of(group, limits, words)
        print(f"{group.name}\n{'=' * len(group.name)}\n")
        lines = [*told.paragraphs, "", *told.caveats, *([""] if told.caveats else []), told.measured_on]
        print("\n".join(map(_wrapped, lines)))
        for shown in told.tables:
            print(f"\n{_table(*shown)}")
        print("\n" + "\n".join(map(_wrapped, told.closing)) + "\n")
    return []


def _wrapped(text: str) -> str:
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    return textwrap.fill(text, width, subsequent_indent="  " if text.startswith("- ") else "")


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)


def _folder_problems(folders: Sequence[str]) -> list[str]:
    if not folders:
        return ["no folder was given; name the sweep's, for example results/default"]
    found = []
    for folder in folders:
        if folder in WORDS:
            found.append(f"{folder}: a limit needs a value, for example {folder}=yes or {folder}=1")
        elif not Path(folder).is_dir():
            found.append(f"{folder}: no such folder; a sweep's results are in results/<sweep>")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.report {COMMAND}",
        description="Which method to use under your limits, by how much, and what would change the answer.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="limits (each the most that is allowed):\n" + "\n".join(_help_lines()),
    )
    parser.add_argument("words", nargs="+", metavar="FOLDER|NAME=VALUE", help="results/<sweep>; a limit")
    parser.add_argument("--allow-different", metavar="NAME[,NAME...]", help="as in the report")
    return parser


def _help_lines() -> list[str]:
    return [
        textwrap.fill(word.meaning, 100, initial_indent=f"  {name:<22}", subsequent_indent=" " * 24)
        for name, word in WORDS.items()
    ]
