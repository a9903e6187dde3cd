"""`python -m bench.fetch`: model, data, suite and packages in one folder, for a machine without a network.

    python -m bench.fetch model=llama-3.2-3b task=gsm8k suite=general        the overrides of the runs it is for
    ... --to FOLDER                                                          default: bundle
    ... --no-wheels                                                          without the Python packages
    python -m bench.fetch verify FOLDER                                      is all of it there, unchanged?

A run uses it by `paths.bundle=FOLDER` and then asks no hub. The same command again goes on where it was interrupted.
docs/air-gapped.md has the steps on both machines.

Exit codes: 0 gathered, or verified; 1 refused, with the reasons; 2 a mistake in the command, or the hub said no.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.cli import console
from bench.compose import compose
from bench.config import ConfigurationError
from bench.sweep.fetching import gather, read_bundle, refusals

FOLDER = Path("bundle")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _verify(given[1:]) if given[:1] == ["verify"] else _gather(given)
    except ConfigurationError as error:
        for problem in error.problems:
            console.problem(f"bench.fetch: {problem}")
        return 2


def _gather(given: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fetch", description="Gather what runs need in one folder.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the runs, as for python -m bench")
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="FOLDER", help=f"default: {FOLDER}")
    parser.add_argument("--no-wheels", action="store_true", help="without the Python packages")
    asked = parser.parse_intermixed_args(given)
    configs = compose(asked.overrides, multirun=True)
    with console.stage(f"fetch into {asked.to}") as watch:
        bundle = gather(configs, asked.overrides, asked.to, wheels=not asked.no_wheels, watch=watch)
    for source in bundle.sources:
        console.say(f"{source.kind} {source.name}: revision {source.revision}")
    size_bytes = sum(file.bytes for name, file in bundle.files.items() if "/snapshots/" not in name)  # links to blobs
    console.say(
        f"Gathered in {asked.to}: {len(bundle.files)} files, {size_bytes / 2**30:.2f} GiB. Its README.md says how"
    )
    console.say(f"it is installed and used. Verify it: python -m bench.fetch verify {asked.to}")
    return 0


def _verify(given: list[str]) -> int:
    if len(given) != 1:
        raise ConfigurationError(["verify: takes one folder: python -m bench.fetch verify FOLDER"])
    folder = Path(given[0])
    bundle, found = read_bundle(folder), refusals(folder)
    for text in found:
        console.say(f"REFUSED  {text}")
    if not found:
        console.say(f"VERIFIED {folder}: {len(bundle.files)} files are those gathered at {bundle.fetched_at}.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
