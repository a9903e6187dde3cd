"""`python -m bench.report results/default`: write the report of a sweep (again), until `python -m bench report` does.

python -m bench.report results/a results/b --allow-different=device,threads --export=latex,png
python -m bench.report recommend results/a memory_gib=24 mergeable=yes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.config import ConfigurationError
from bench.fairness import allowed_names


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 2 for mistakes."""
    from bench.report.build import NoRecordsError, answer_text, build_report, formats_of
    from bench.stats.decide import limits_from_words
    from bench.stats.frames import load

    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m bench.report")
    parser.add_argument("words", nargs="+", metavar="FOLDER|LIMIT=VALUE")
    parser.add_argument("--allow-different", type=allowed_names, default=frozenset())
    parser.add_argument("--target-loss", type=float)
    parser.add_argument("--export", type=formats_of, default=frozenset())
    try:
        given = parser.parse_args(words[1:] if words[:1] == ["recommend"] else words)
        folders = [Path(word) for word in given.words if "=" not in word]
        limits = limits_from_words([word for word in given.words if "=" in word])
        if words[:1] == ["recommend"]:
            print(answer_text(load(*folders), allowed=given.allow_different, limits=limits))
            return 0
        options = {"target_loss": given.target_loss, "formats": given.export, "limits": limits}
        print(build_report(*folders, allowed=given.allow_different, **options))
    except (FileNotFoundError, NoRecordsError, ConfigurationError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
