"""Two published additions to LoRA that PEFT offers beside its configuration; `methods` calls them where asked for.

LoRA+    B learns faster than A by a fixed ratio (Hayou et al. 2024)
LoftQ    A and B start from what quantizing the base lost, not from zero (Li et al. 2023); the 4-bit base stays as it is
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import replace_lora_weights_loftq
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer, TrainingArguments

from bench.config import ModelConfig


def loraplus(model: Any, arguments: TrainingArguments, ratio: float) -> torch.optim.Optimizer:
    """The configured optimizer with B's learning rate at `ratio` times A's, which is the method's own."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    rate = options.pop("lr")
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model, kind, lr=rate, loraplus_lr_ratio=ratio, loraplus_weight_decay=arguments.weight_decay, **options
    )
    # No empty groups: schedules and records look at the first one.
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    return optimizer


def start_from_quantization_error(model: Any, config: ModelConfig, source: str) -> None:
    """LoftQ's start for a 4-bit base. CUDA only, as PEFT's function is.

    Args:
        source: what `models.locate` gave: a folder with the unquantized safetensors, or a name on the hub.
    """
    folder = source if Path(source).exists() else snapshot_download(source, revision=config.revision)
    replace_lora_weights_loftq(model, model_path=str(folder))
