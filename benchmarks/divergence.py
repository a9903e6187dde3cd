"""How much of the divergence from the base is lost by lumping the base's unlikely tokens together?

    python -m benchmarks.divergence results/default/lora-smollm2-135m-docstrings-s0-700c1d3c

For a finished run whose weights are still in `artifacts/`: KL(base || tuned) by text, with the base's 32 to 8192
likeliest tokens kept one by one, and with all of them, which is exact.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from tabulate import tabulate

from bench.config import RunConfig
from bench.identity import artifact_folder
from bench.record import from_json
from bench.worker import device, divergence, methods, models
from bench.worker import loss as heldout

KEPT = (32, 128, 512, 2048, 8192)
_ALL = 10**9


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    config = from_json(RunConfig, (parser.parse_args().run / "plan.json").read_bytes())
    found = {kept: _measured(config, kept) for kept in (*KEPT, _ALL)}
    rows = [
        ["all" if kept == _ALL else kept, task, value, value / found[_ALL][task]]
        for kept, values in found.items()
        for task, value in values.items()
    ]
    headers = ["tokens kept one by one", "texts", "KL, nats/token", "of the exact value"]
    print(tabulate(rows, headers, "github", floatfmt=("", "", ".4f", ".4f")))


def _measured(config: RunConfig, kept: int) -> dict[str, float]:
    cache = Path(config.paths.cache)
    with tempfile.TemporaryDirectory() as folder, patch.object(divergence, "TOP", kept):
        resolved = device.resolve(config)
        source = models.locate(config.model, cache)
        tokenizer = models.load_tokenizer(config.model, source)
        elsewhere = replace(config, paths=replace(config.paths, cache=folder))  # nothing is kept of this
        some = replace(elsewhere, suite=replace(config.suite, items_per_task=8))  # all texts in full would take 4 GB
        reference = divergence.reference_of(some, source, tokenizer, resolved)
        model = methods.load_trained(config, source, artifact_folder(config), resolved.type, resolved.compute_dtype)
        with heldout.inference(model, resolved):
            outcome = divergence.divergence(model, reference, resolved)
    return {task.task: task.value for task in outcome.tasks}


if __name__ == "__main__":
    main()
