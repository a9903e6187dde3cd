"""A command line, taken apart: command, paths, KEY=VALUE settings and flags.

>>> parse(["report", "results/default", "memory_gib=24"], {"report": (1, 1, "the folder of a sweep")}).settings
['memory_gib=24']
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.config import suggest
from bench.mistakes import ConfigurationError

FLAGS = ("-m", "--json", "--help")
Takes = tuple[int, int, str]  # the fewest and the most paths of a command, in words


@dataclass(frozen=True)
class Given:
    """A command line, taken apart."""

    command: str  # "sweep" where none is named
    paths: list[Path]
    settings: list[str]  # KEY=VALUE
    flags: frozenset[str]


def parse(arguments: Sequence[str], commands: Mapping[str, Takes]) -> Given:
    """Take a command line apart.

    Args:
        commands: name -> the paths that it takes.

    Raises:
        ConfigurationError: unknown commands or flags, and paths where none belong or none where some do.
    """
    if broken := [text for text in arguments if text.encode(errors="ignore").decode() != text]:
        raise ConfigurationError([f"{text!a}: not valid UTF-8; write it in UTF-8" for text in broken])
    flags = {"--help" if text == "-h" else text for text in arguments if text.startswith("-")}
    words = [text for text in arguments if not text.startswith("-")]
    settings = [text for text in words if "=" in text and not os.path.isdir(text)]  # Path's raises for a long name
    paths = [text for text in words if text not in settings]
    command = "sweep" if not paths or words[0] in settings else paths.pop(0)
    if command not in commands:
        raise ConfigurationError([f"{command}: no such command{suggest(command, [*commands])}"])
    problems = [f"{flag}: no such flag{suggest(flag, [*FLAGS])}" for flag in sorted(flags - {*FLAGS})]
    least, most, takes = commands[command]
    if not least <= len(paths) <= most and "--help" not in flags:
        given = f"given {', '.join(paths)}" if paths else "none was given"
        problems.append(f"{command}: takes {takes}; {given}. Settings have the form KEY=VALUE")
    if problems:
        raise ConfigurationError(problems)
    return Given(command, [Path(path) for path in paths], settings, frozenset(flags))


def take(settings: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """(a command's own settings by name, the others as they were given)."""
    own = {name: value for name, _, value in (text.partition("=") for text in settings) if name in names}
    return own, [text for text in settings if text.partition("=")[0] not in names]
