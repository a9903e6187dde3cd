"""The held-out loss of saved weights: fp32, plain transformers logits, one function for every trainer.

    python -m benchmarks.peers.heldout RESULT.json     adds "heldout_loss" (nats per answer token) to the file

All weights are rounded to bf16 first, the form in which they are shipped; adapters are kept as they were trained and
act on the base that they were trained on (for QLoRA its 4-bit values, exactly, in fp32).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.peers.hugging_face import quantization
from benchmarks.peers.material import Material, Rows, configured, gather
from benchmarks.peers.run import Run

BATCH = 8


def mean_loss(model: Any, rows: Rows, pad_id: int) -> float:
    """Sum of token losses over the number of labelled tokens."""
    nats, tokens = 0.0, 0
    ordered = sorted(rows, key=lambda row: -len(row["input_ids"]))
    for at in range(0, len(ordered), BATCH):
        batch = ordered[at : at + BATCH]
        longest = len(batch[0]["input_ids"])
        padded = {
            key: torch.tensor([row[key] + [filler] * (longest - len(row[key])) for row in batch])
            for key, filler in (("input_ids", pad_id), ("labels", -100))
        }
        mask = torch.tensor([[1] * len(r["labels"]) + [0] * (longest - len(r["labels"])) for r in batch])
        with torch.no_grad():
            logits = model(input_ids=padded["input_ids"], attention_mask=mask, use_cache=False).logits
        targets = padded["labels"][:, 1:].flatten()
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="none", ignore_index=-100)
        nats += float(losses.double().sum())
        tokens += int((targets != -100).sum())
    return nats / tokens


def load(material: Material, weights: Path) -> Any:
    """The trained model in fp32."""
    if (weights / "model.pth").exists():  # litgpt, merged and converted by its own scripts
        model = AutoModelForCausalLM.from_pretrained(material.model, dtype=torch.float32, tie_word_embeddings=False)
        model.load_state_dict(torch.load(weights / "model.pth", map_location="cpu"))
    elif material.adapter is None:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.bfloat16)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            material.model, dtype=torch.float32, quantization_config=quantization(material)
        )
        if material.quantization is not None:
            model = model.dequantize(torch.float32)
        model = PeftModel.from_pretrained(model.float(), weights)
    if material.adapter is None:
        model = model.to(torch.bfloat16)
    return model.float().eval()


def main(file: Path) -> None:
    """Score the weights that a result file names."""
    result = json.loads(file.read_text())
    run = Run(**result["run"])
    exact = configured(Run(**{**result["run"], "precision": "fp32"}), file.parent, Path(result["cache"]))
    material = gather(exact)
    model = load(material, Path(result["weights"]))
    result["heldout_loss"] = mean_loss(model, material.validation, material.pad_id)
    file.write_text(json.dumps(result, indent=1))
    print(run.name, "held-out loss in fp32:", result["heldout_loss"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
