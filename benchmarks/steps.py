"""What each optimization of the training step gives: tokens/s and peak memory, one added after the other.

    python -m benchmarks.steps                          the table of docs/maintainers/performance.md
    python -m benchmarks.steps --method full --rounds 1

Every row runs in a child process of its own, on the embedded model and task, rows alternating over the rounds. What the
product has no switch for (it is never worth switching off) is taken out here, by replacing the function.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

EAGER = ["train.compile=off", "hardware.attention=sdpa"]
COMPILED = ["train.compile=regional", "hardware.attention=products"]
ROWS = {  # name -> (what is taken out, overrides); each row has what the rows before it have
    "plain": (["sorting", "head", "fused"], EAGER),
    "+ batches sorted by length": (["head", "fused"], EAGER),
    "+ head on supervised positions": (["fused"], EAGER),
    "+ fused optimizer": ([], EAGER),
    "+ compiled layers": ([], ["train.compile=regional", "hardware.attention=sdpa"]),
    "+ attention as products": ([], COMPILED),
    "+ micro-batch 8": ([], [*COMPILED, "train.micro_batch=8"]),
    "+ packing": ([], [*COMPILED, "train.micro_batch=8", "train.packing=true"]),
}
BUDGET = ["train.untimed_steps=3", "train.heldout_points=1", "suite=none", "task.validation_examples=4"]


def main() -> None:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(len(ROWS))), help="which, from 0")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--overrides", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(_run(options.one.split(), options.overrides)))
        return
    names = [list(ROWS)[place] for place in options.rows]
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            removed, overrides = ROWS[name]
            shared = [f"method={options.method}", f"train.max_steps={options.steps}", *BUDGET]
            seen[name].append(_child(removed, [*shared, *overrides]))
            print(f"round {number + 1}, {name}: {seen[name][-1]['tokens_per_second']:.0f} tokens/s", flush=True)
    print(table(seen))


def table(seen: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown; medians over the rounds, and the ratio to the row before within each round."""
    rows: list[list[Any]] = []
    before: list[float] | None = None
    for name, runs in seen.items():
        speeds = [run["tokens_per_second"] for run in runs]
        ratios = [a / b for a, b in zip(speeds, before, strict=True)] if before else []
        peak = max(run["peak_bytes"] for run in runs) / 2**20
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        mfu, compiling = median(run["mfu"] for run in runs), [run["compile_seconds"] for run in runs]
        rows.append([name, median(speeds), spread, median(ratios) if ratios else None, peak, mfu])
        rows[-1].append(median(compiling) if None not in compiling else None)
        before = speeds
    headers = ["step", "tokens/s", "rounds", "of the row before", "peak, MiB", "MFU", "compiling, s"]
    formats = ("", ".0f", "", ".2f", ".0f", ".2f", ".0f")
    return tabulate(rows, headers, "github", floatfmt=formats)


def _child(removed: list[str], overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.steps", "--one", " ".join(removed), "--overrides", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def _run(removed: list[str], overrides: list[str]) -> dict[str, Any]:
    from bench.compose import compose
    from bench.worker import prepare as prepare_stage
    from bench.worker import train as train_stage
    from bench.worker.main import Context, Progress

    for name in removed:
        _take_out(name)
    with tempfile.TemporaryDirectory() as folder:
        kept = [f"paths.{name}={folder}/{name}" for name in ("results", "artifacts")]
        (config,) = compose([*overrides, *kept], multirun=False)
        context = Context(Path(folder), config, Progress(Path(folder), "train"))
        prepare_stage.run(context)
        result = train_stage.run(context)
    (peak,) = [phase.peak_bytes for phase in result.memory if phase.phase == "train"]
    return {
        "tokens_per_second": result.train_tokens_per_second,
        "peak_bytes": peak,
        "mfu": result.mfu,
        "compile_seconds": result.compile_seconds,
    }


def _take_out(name: str) -> None:
    """Replace one optimization by what others do."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from bench.worker import data, methods
    from bench.worker.loss import SupervisedHead

    def drawn(lengths: Any, *, seed: int, epochs: int, batch_size: int, max_steps: int | None) -> list[int]:
        order = np.random.default_rng(seed).permutation(len(lengths))
        return [int(i) for i in order[: (max_steps or len(order)) * batch_size]]

    def all_positions(self: Any, model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        targets = batch["labels"][:, 1:]
        losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none")
        labelled = (targets != -100).flatten()
        return losses[labelled], (targets != -100).nonzero()[:, 0]

    if name == "sorting":
        data.training_order = drawn
    elif name == "head":
        SupervisedHead.token_losses = all_positions  # type: ignore[method-assign]
    elif name == "fused":
        methods.OPTIMIZERS["adamw"] = "adamw_torch"


if __name__ == "__main__":
    main()
