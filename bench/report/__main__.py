"""`python -m bench.report results/default`: write the report of a sweep (again).

    python -m bench.report results/a results/b --allow-different=device,threads
    python -m bench.report recommend results/a memory_gb=24     what to use under your limits: recommend.py
    python -m bench.report results/a --target-loss=1.9
    python -m bench.report results/a --export=latex,markdown,parquet,svg
    python -m bench.report --history results/a results/b        one row a sweep and method over time: history.py

Exit code 0 with the report's path on standard output; 2 with a message when there is nothing to report, or a name
given to `--allow-different` is not known. Exceptions and the target hold for this report only: give them again with the
next one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.config import ConfigurationError
from bench.fairness import REQUIREMENTS, allowed_names
from bench.report import recommend


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == [recommend.COMMAND]:
        return recommend.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description="Write the report of a sweep.",
        epilog="What to use under your limits: python -m bench.report recommend --help",
    )
    help_text = "results/<sweep>; the report is written into the first one and covers all of them"
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=help_text)
    parser.add_argument("--allow-different", metavar="NAME[,NAME...]", help=_allow_help())
    target_help = "held-out loss whose time, tokens and energy are told; the default is the worst final loss compared"
    parser.add_argument("--target-loss", metavar="NATS", type=_loss, help=target_help)
    export_help = "also write latex, markdown and parquet (tables), svg and pdf (plots)"
    parser.add_argument("--export", metavar="FORMAT[,FORMAT...]", help=export_help)
    history_help = "write the history of the sweeps instead, into the first folder: quality, memory, speed over time"
    parser.add_argument("--history", action="store_true", help=history_help)
    given = parser.parse_args(arguments)
    if given.history and (given.allow_different or given.target_loss or given.export):
        parser.error("--history compares nothing: leave out --allow-different, --target-loss and --export")
    # pandas and matplotlib: only when there is work
    from bench.report.build import NoRecordsError, build_report
    from bench.report.exports import formats_of
    from bench.report.history import build_history

    try:
        if given.history:
            print(build_history(*given.folders))
            return 0
        allowed = frozenset() if given.allow_different is None else allowed_names(given.allow_different)
        formats = frozenset() if given.export is None else formats_of(given.export)
        print(build_report(*given.folders, allowed=allowed, target_loss=given.target_loss, formats=formats))
    except (FileNotFoundError, NoRecordsError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    except ConfigurationError as error:
        print("\n".join(f"bench.report: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    return 0


def _loss(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a loss in nats per token is above 0 and finite, for example 1.9")
    return value


def _allow_help() -> str:
    names = "; ".join(f"{name}: {meaning}" for name, meaning in REQUIREMENTS.items())
    return f"compare runs that differ in these nonetheless, and say so in the report ({names})"


if __name__ == "__main__":
    sys.exit(main())
