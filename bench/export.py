"""`python -m bench.export RUN`: a tuned model as a folder for others, with its card; `verify FOLDER` proves it.

    python -m bench.export results/default/lora-...            writes exports/lora-...
    python -m bench.export results/default/lora-... --to DIR --license apache-2.0
    python -m bench.export results/default/lora-... --form merged      a form that serving built (docs/serving.md)
    python -m bench.export verify exports/lora-...             loads it afresh and evaluates it again
    python -m bench.export verify DIR --base BASE_FOLDER       with a base from another place

Exit codes: 0 exported, or verified; 1 refused, with the reasons; 2 a mistake in the command: nothing was done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from bench.cli import console
from bench.config import ConfigurationError
from bench.sweep.exporting import Exportable, Verification, export, exportable, verify

EXPORTS = Path("exports")
TOLERANCE = 0.01  # of a score: another processor rounds otherwise, and a greedy answer may then take another turn


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _verify(arguments[1:]) if arguments[:1] == ["verify"] else _export(arguments)
    except ConfigurationError as error:
        for problem in error.problems:
            console.problem(f"bench.export: {problem}")
        return 2


def _export(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.export", description="Export a tuned run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="results/<sweep>/<run_id>")
    parser.add_argument("--to", type=Path, metavar="DIR", help="default: exports/<run_id>[-FORM]")
    parser.add_argument("--form", metavar="FORM", help="merged, merged_nf4, ...; default: as it was trained")
    parser.add_argument("--license", metavar="ID", help="of the weights, for the card, such as apache-2.0")
    given = parser.parse_args(arguments)
    run = exportable(given.run, given.form)
    target = given.to or EXPORTS / run.name
    from bench.report.card import (
        card,  # pandas and jinja2: only when there is work
        own_scores,
    )

    with console.stage(f"export {run.record.run_id}") as watch:
        license_id = given.license or _license_of_package(run)
        scores = own_scores(run.folder, run.form)
        manifest = export(run, target, scores=scores, license=license_id, card=card, watch=watch)
    size_bytes = sum(file.bytes for file in manifest.files.values())
    console.say(f"Exported to {target}: {len(manifest.files)} files, {size_bytes / 2**20:.1f} MiB.")
    if manifest.license is None:
        console.say("Licence: not stated; give --license=ID before you publish it.")
    console.say(f"Verify it: python -m bench.export verify {target}")
    return 0


def _license_of_package(run: Exportable) -> str | None:
    """The licence that the package of an embedded base states; None for others."""
    if run.config.model.source != "gguf_package":
        return None
    try:
        stated = metadata(run.config.model.location.replace("_", "-"))
    except PackageNotFoundError:
        return None
    text = stated["License-Expression"] or stated["License"]
    return text.lower() if text else None


def _verify(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.export verify", description="Prove an exported folder.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `bench.export RUN` wrote")
    parser.add_argument("--base", metavar="FOLDER", help="the base model, if not where the run found it")
    parser.add_argument("--cache", default="cache", help="where models are fetched to (default: cache)")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="how far a score may be off (0.01)")
    given = parser.parse_args(arguments)
    with console.stage(f"verify {given.folder.name}") as watch:
        found = verify(given.folder, base=given.base, cache=given.cache, tolerance=given.tolerance, watch=watch)
    for line in _lines(given.folder, found):
        console.say(line)
    return 1 if found.refusals else 0


def _lines(folder: Path, found: Verification) -> list[str]:
    if found.refusals:
        return [f"REFUSED  {folder}:", *(f"  - {text}" for text in found.refusals)]
    recorded = found.manifest.evaluated
    scores = [
        f"{name} {found.found['scores'][name]:.4f} (recorded {score.value:.4f} [{score.low:.3f}, {score.high:.3f}])"
        for name, score in recorded.scores.items()
    ]
    equal = f"{found.found['equal_answers']} of {recorded.examples} answers are the recorded ones"
    return [
        f"VERIFIED {folder}: files, base and prompt format are those exported.",
        f"  {'; '.join(scores)}; {equal}.",
    ]


if __name__ == "__main__":
    sys.exit(main())
