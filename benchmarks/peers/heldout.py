"""The held-out loss of saved weights: fp32, plain transformers logits, one function for every trainer.

    python -m benchmarks.peers.heldout RESULT.json     adds "heldout_loss" (nats per answer token) to the file

All weights are rounded to bf16 first, the form in which they are shipped; adapters are kept as they were trained and
act on the base that they were trained on (for QLoRA its 4-bit values in fp32).
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


def mean_loss(model: Any, rows: Rows) -> float:
    """Sum of token losses over the number of answer tokens; one example at a time, so that nothing is padding."""
    nats, tokens = 0.0, 0
    for row in rows:
        answer = torch.tensor([label for label in row["labels"] if label != -100])
        with torch.no_grad():
            output = model(torch.tensor([row["input_ids"]]), use_cache=False, logits_to_keep=len(answer) + 1)
        nats += float(F.cross_entropy(output.logits[0, :-1].double(), answer, reduction="sum"))
        tokens += len(answer)
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
    result["heldout_loss"] = mean_loss(model, material.validation)
    file.write_text(json.dumps(result, indent=1))
    print(run.name, "held-out loss in fp32:", result["heldout_loss"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
