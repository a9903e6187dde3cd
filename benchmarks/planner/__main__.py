"""The planner's estimates against measured and published runs.

    python -m benchmarks.planner measured                      every case of cases.py, about a minute each
    python -m benchmarks.planner measured --only full --folder FOLDER    some; finished cases are read again
    python -m benchmarks.planner overhead --folder FOLDER      what a process takes beside its tensors, by case
    python -m benchmarks.planner published                     against published.yaml; measures nothing
    python -m benchmarks.planner calibrate                     the planner's 90% intervals from it, written and checked

Measured runs go through the ordinary harness: model, data and training in child processes, the numbers from their
records. What is estimated is given the lengths that were really consumed, nothing else that was measured.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.planner import measured, published
from benchmarks.planner.calibrate import calibrate
from benchmarks.planner.cases import CASES


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner")
    parser.add_argument("what", choices=("measured", "overhead", "published", "calibrate"))
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--folder", type=Path, help="where runs are kept; without it they are thrown away")
    arguments = parser.parse_args()
    if arguments.what in ("published", "calibrate"):
        print(published.table() if arguments.what == "published" else calibrate())
        return
    chosen = [case for case in CASES if arguments.only in case.name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        runs = measured.run_all(chosen, folder)
        print(measured.overhead_table(runs) if arguments.what == "overhead" else measured.table(runs))


if __name__ == "__main__":
    main()
