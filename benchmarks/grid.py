"""Which of full fine-tuning's updates does bf16 see? The share of weights that a run left where they were, in bf16.

    python -m benchmarks.grid results/default/full-smollm2-135m-docstrings-s0-b51b30c3

For a finished run of a method that trains all weights, its weights still in `artifacts/`, against its base: embeddings
are left out, since most of their rows get no gradient.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open

from bench.config import RunConfig
from bench.identity import artifact_folder
from bench.record import from_json
from bench.worker import models


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    config = from_json(RunConfig, (parser.parse_args().run / "plan.json").read_bytes())
    base = Path(models.locate(config.model, Path(config.paths.cache))) / "model.safetensors"
    tuned = artifact_folder(config) / "model.safetensors"
    unchanged = total = 0
    magnitudes: list[float] = []
    with safe_open(base, "pt") as before, safe_open(tuned, "pt") as after:
        names = {name for name in before.keys() if "embed" not in name}  # noqa: SIM118 (no mapping)
        for name in sorted(names.intersection(after.keys())):
            left, right = (file.get_tensor(name).to(torch.bfloat16) for file in (before, after))
            unchanged += int((left == right).sum())
            total += left.numel()
            magnitudes.append(float(left.float().abs().median()))
    print(f"{100 * unchanged / total:.1f}% of {total:,} weights are the same bf16 numbers as before training.")
    print(f"Learning rate {config.method.learning_rate}; the middle tensor's median weight {median(magnitudes):.3f}.")


if __name__ == "__main__":
    main()
