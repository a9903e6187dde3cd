"""Peak memory and speed of the loss with every token labelled: all logits at once against chunks.

    python -m benchmarks.logits [POSITIONS]        the table of docs/maintainers/performance.md; two minutes

The embedded model's head (width 576, vocabulary 49,152) behind one decoder layer, bf16 autocast; each line is a process
of its own, the median of three steps behind a first one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

SHAPE = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
LENGTH, STEPS = 256, 4


def measure(kind: str, head_kind: str, positions: int) -> dict[str, float]:
    """Seconds, peak bytes above the start, and the loss of a forward and a backward pass."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from bench.worker.loss import SupervisedHead

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS))
    trained = head_kind == "trained"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained or "q_proj" in name)
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    ids = torch.randint(3, 49_000, (positions // LENGTH, LENGTH))
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    head, seconds = SupervisedHead(model, whole=kind == "whole"), []
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak from here on
    start = resident("VmRSS")
    for _ in range(STEPS):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            losses, _ = head.token_losses(model, batch)
        (losses.sum() / losses.numel()).backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[1:]), "bytes": resident("VmHWM") - start, "loss": float(losses.mean())}


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def main(positions: int) -> None:
    """Print the table."""
    print("| head | logits | tokens/s | peak above the start, MiB | loss |\n| --- | --- | --- | --- | --- |")
    for head in ("frozen", "trained"):
        for kind in ("whole", "chunks"):
            command = [sys.executable, "-m", "benchmarks.logits", kind, head, str(positions)]
            found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            speed = (positions - positions // LENGTH) / found["seconds"]
            print(f"| {head} | {kind} | {speed:.0f} | {found['bytes'] / 2**20:.0f} | {found['loss']:.5f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 4096)
