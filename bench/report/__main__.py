"""`python -m bench.report results/default`: write the report of a sweep (again).

Exit code 0 with the report's path on standard output; 2 with a message when there is nothing to report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Write the report of a sweep.")
    help_text = "results/<sweep>; the report is written into the first one and covers all of them"
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=help_text)
    folders = parser.parse_args(arguments).folders
    from bench.report.build import NoRecordsError, build_report  # pandas and matplotlib: only when there is work

    try:
        print(build_report(*folders))
    except (FileNotFoundError, NoRecordsError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
