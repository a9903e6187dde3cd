"""Does a method learn in bf16 as it does in fp32? Whole short runs, for each way to compute and each learning rate.

    python -m benchmarks.numerics                         the table of docs/fairness.md
    python -m benchmarks.numerics --methods lora --rates 1e-4 --steps 8
    python -m benchmarks.numerics --methods full --ways fp32 "bf16, compiled, from the grid"

Every run is a child process of its own: the embedded model and task, compared with the fp32 run of the same method,
rate, seed and stream. The last held-out loss is computed in fp32 for all: of the weights as they were trained, and
as they are saved (full: rounded to bf16). The sweep's own way (compiled) and fp32 run
under every seed, which tells the seeds' noise; the others under the first seed only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

WAYS = {  # name -> overrides; the first is what the others are compared with
    "fp32": ["hardware.compute_dtype=float32", "train.compile=off"],
    "bf16, eager, added in bf16": ["train.compile=off", "method.adapter.add_in_fp32=false"],
    "bf16, eager, added in fp32": ["train.compile=off"],
    "bf16, compiled": ["train.compile=regional"],
    "bf16, compiled, from the grid": ["train.compile=regional", "method.dither=false"],
}
RATES = {"full": [5e-5], "lora": [5e-4, 1e-4], "qlora": [5e-4]}  # the sweep's own first
ADAPTERS_ONLY = "bf16, eager, added in bf16"
FULL_ONLY = "bf16, compiled, from the grid"
UNDER_EVERY_SEED = ("fp32", "bf16, compiled", FULL_ONLY)


def main() -> None:
    """Run every row and print the table; rows that are stored already are not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(RATES))
    parser.add_argument("--rates", nargs="+", type=float, help="instead of each method's own")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/numerics.json"))
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_run(options.one)))
        return
    runs = json.loads(options.output.read_text()) if options.output.exists() else {}
    for seed in options.seeds:
        for method, rate, way in _rows(options, first=seed == options.seeds[0]):
            name = f"{method}|{rate:g}|{way}|{options.steps}x{options.batch}|{seed}"
            if name not in runs:
                budget = [f"train.max_steps={options.steps}", f"train.batch_size={options.batch}", f"seed={seed}"]
                runs[name] = _child([f"method={method}", f"method.learning_rate={rate}", *budget, *WAYS[way]])
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(runs, indent=1))
            print(name, runs[name]["final"], flush=True)
    print(table(runs))


def _rows(options: argparse.Namespace, *, first: bool) -> list[tuple[str, float, str]]:
    """What runs under a seed; `first`: the seed under which everything runs."""
    return [
        (method, rate, way)
        for method in options.methods
        for rate in (options.rates or RATES[method])[: None if first else 1]
        for way in options.ways
        if (first or way in UNDER_EVERY_SEED) and way != (ADAPTERS_ONLY if method == "full" else FULL_ONLY)
    ]


def table(runs: dict[str, Any]) -> str:
    """Markdown: one row a method, rate and way; losses less those of the fp32 run of the same seed."""
    grouped: dict[tuple[str, ...], list[tuple[Any, Any]]] = {}
    for name, run in runs.items():
        method, rate, way, budget, seed = name.split("|")
        grouped.setdefault((method, rate, way, budget), []).append((run, runs[f"{method}|{rate}|fp32|{budget}|{seed}"]))
    rows = []
    for (method, rate, way, _), pairs in grouped.items():
        second = fmean(run["losses"][1] - exact["losses"][1] for run, exact in pairs)
        differences = [run["final"] - exact["final"] for run, exact in pairs]
        seeds_of_fp32 = [exact["final"] for _, exact in pairs]
        noise = stdev(seeds_of_fp32) if len(pairs) > 1 else None
        rows.append([method, rate, way, len(pairs), second, fmean(run["final"] for run, _ in pairs)])
        rows[-1] += [fmean(differences), max(differences), noise, fmean(run["saved"] for run, _ in pairs)]
    headers = ["method", "rate", "numerics", "seeds", "step 2, less fp32's", "held-out at the end", "less fp32's"]
    headers += ["the worst seed's", "fp32's spread over seeds", "as saved"]
    return tabulate(rows, headers, "github", floatfmt=".4f", disable_numparse=[1])


def _child(overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.numerics", "--one", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def _run(overrides: list[str]) -> dict[str, Any]:
    """Train, then take the held-out loss in fp32."""
    import dataclasses

    import torch

    from bench.compose import compose
    from bench.identity import data_folder
    from bench.worker import data as prepare
    from bench.worker import device, methods, models
    from bench.worker import loss as heldout
    from bench.worker import prepare as prepare_stage
    from bench.worker import train as train_stage
    from bench.worker.loss import SupervisedHead
    from bench.worker.main import Context, Progress

    with tempfile.TemporaryDirectory() as folder:
        kept = [f"paths.{name}={folder}/{name}" for name in ("results", "artifacts")]
        (config,) = compose([*overrides, *kept, "suite=none", "train.heldout_points=1"], multirun=False)
        context = Context(Path(folder), config, Progress(Path(folder), "train"))
        prepare_stage.run(context)
        save = methods.save_trained

        def save_twice(trained: Any, method: Any, target: Path) -> None:
            save(trained, method, target)  # full: in bf16, the form that is shipped
            trained.save_pretrained(Path(folder) / "exact")

        methods.save_trained = save_twice
        result = train_stage.run(context)
        steps = [json.loads(line) for line in (Path(folder) / "steps.jsonl").read_text().splitlines()]
        hardware = dataclasses.replace(config.hardware, compute_dtype="float32")
        exact = dataclasses.replace(config, hardware=hardware)
        resolved = device.resolve(exact)
        source = models.locate(config.model, context.cache)
        rows = list(prepare.load_prepared(data_folder(config)).validation)
        pad_id = models.load_tokenizer(config.model, source).pad_token_id

        def fp32_loss(weights: Path) -> float:
            model = methods.load_trained(exact, source, weights, resolved.type, torch.float32)
            with heldout.inference(model, resolved):
                head = SupervisedHead(model)
                losses = heldout.example_losses(model, head, rows, batch_size=8, pad_id=pad_id, device=resolved)
            return heldout.mean_loss(losses)

        final = fp32_loss(Path(folder) / "exact")
        saved = fp32_loss(context.weights) if config.method.adapter is None else final  # adapters are saved in fp32
    return {
        "losses": [step["loss"] for step in steps],
        "final": final,  # of the weights as trained
        "saved": saved,  # of the weights as saved
        "environment": result.environment.compiled,
        "data_stream_sha256": result.data_stream_sha256,
    }


if __name__ == "__main__":
    main()
