"""litgpt's own fine-tuning scripts on our rows: `python -m benchmarks.peers.litgpt_child FOLDER`, in litgpt's Python.

What litgpt does differently and cannot be told otherwise: the loss of a step is the mean of its micro-batches' means,
gradients are not clipped, and the output head is not tied to the embedding.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.data.base import get_sft_collate_fn
from litgpt.finetune import full as finetune_full
from litgpt.finetune import lora as finetune_lora
from litgpt.prompts import Default
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from torch.utils.data import DataLoader

from benchmarks.peers.meter import Meter


class Rows(DataModule):
    """Our rows, in our order."""

    def __init__(self, request: dict[str, Any], meter: Meter):
        super().__init__()
        self.prompt_style = Default()
        self._request, self._meter = request, meter
        self._collate = get_sft_collate_fn(pad_id=request["pad_id"])

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **_: Any) -> None:
        self._micro_batch = batch_size

    def train_dataloader(self) -> Any:
        return self._loader("train", self._meter.watching(self._to_tensors))

    def val_dataloader(self) -> Any:
        return self._loader("validation", self._to_tensors)

    def _loader(self, split: str, collate: Any) -> Any:
        return DataLoader(self._request[split], batch_size=self._micro_batch, shuffle=False, collate_fn=collate)

    def _to_tensors(self, rows: list[dict[str, Any]]) -> Any:
        samples = []
        for row in rows:
            counts = {"raw": len(row["input_ids"]), "raw_plus_prompt_template": len(row["input_ids"])}
            tensors = {key: torch.tensor(row[key]) for key in ("input_ids", "labels")}
            samples.append({**tensors, "token_counts": counts})
        return self._collate(samples)


def main(folder: Path) -> None:
    """Convert the model, fine-tune it, convert it back, and write what was measured."""
    request = json.loads((folder / "request.json").read_text())
    checkpoint = folder / "checkpoint"
    shutil.copytree(request["model"], checkpoint, dirs_exist_ok=True)
    convert_hf_checkpoint(checkpoint, model_name="SmolLM2-135M-Instruct")
    meter = Meter()
    script = finetune_full if request["adapter"] is None else finetune_lora
    _start_with_the_loop(script, meter)
    adapter = _adapter(request["adapter"])
    script.save_hyperparameters = lambda setup, folder: _note_for_merging(folder, adapter, checkpoint)
    script.setup(
        checkpoint_dir=checkpoint,
        out_dir=folder / "out",
        precision="bf16-mixed",
        devices=1,
        data=Rows(request, meter),
        train=TrainArgs(
            save_interval=None,
            global_batch_size=request["batch_size"],
            micro_batch_size=request["micro_batch"],
            lr_warmup_steps=request["warmup_steps"],
            epochs=2,
            max_steps=request["steps"],
        ),
        eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, initial_validation=False, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": request["learning_rate"], "weight_decay": 0.0, "fused": True},
        },
        seed=request["seed"],
        **adapter,
    )
    convert_lit_checkpoint(folder / "out" / "final", folder)
    measured = meter.result(request["batch_size"]) | {"losses": _losses(folder, request), "gradient_norms": None}
    (folder / "measured.json").write_text(json.dumps(measured))


def _adapter(adapter: list[int] | None) -> dict[str, Any]:
    if adapter is None:
        return {}
    everywhere = {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")}
    return {"lora_r": adapter[0], "lora_alpha": adapter[1], "lora_dropout": 0.0, **everywhere}


def _note_for_merging(folder: Path, adapter: dict[str, Any], checkpoint: Path) -> None:
    """What litgpt reads from its command line, which we do not use, to merge an adapter."""
    content = {**adapter, "precision": "32-true", "checkpoint_dir": str(checkpoint)}
    (folder / "hyperparameters.yaml").write_text(json.dumps(content))  # JSON is YAML


def _start_with_the_loop(script: Any, meter: Meter) -> None:
    """Let the meter start where the loop does, after litgpt's sanity check of its validation."""

    class Started(script.CycleIterator):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            meter.start()

    script.CycleIterator = Started


def _losses(folder: Path, request: dict[str, Any]) -> list[float]:
    """By step, from litgpt's log: the mean of the last micro-batches."""
    (log,) = folder.rglob("metrics.csv")
    iterations = request["batch_size"] // request["micro_batch"]
    with log.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("loss")]
    return [float(row["loss"]) for row in rows if int(float(row["iter"])) % iterations == 0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
