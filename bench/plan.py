"""`python -m bench.plan`: what runs will take, before they run: memory by term, whether it fits, time, energy, money.

    python -m bench.plan model=llama-3.1-8b method=full,lora,qlora train=gpu hardware=h100
    ... plan.memory_gib=24,48,80       several devices; every other plan.NAME=VALUE is explained in conf/plan.yaml
    ... --json                         the same for programs, bytes and seconds

The overrides are those of `python -m bench`. It needs no weights, no GPU and no network; docs/planner.md says where
each number comes from and how far it was off. Exit codes: 0 planned, whether it fits or not; 2 mistakes in the
configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from bench.config import ConfigurationError
from bench.plan_table import notes, table, to_json
from bench.planner.advice import plans

PLAIN_WIDTH = 250  # characters, in a file or a pipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    flags = {text for text in given if text.startswith("-")}
    if flags - {"--json"}:
        print(__doc__)
        return 0 if flags & {"-h", "--help"} else 2
    out = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    problem = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        made = plans([text for text in given if text not in flags])
    except ConfigurationError as error:
        problem.print(error.message(), markup=False)
        return 2
    if flags:
        print(to_json(made))
        return 0
    out.print(table(made, markdown=not out.is_terminal))
    for line in notes(made):
        out.print(line, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
