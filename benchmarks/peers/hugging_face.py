"""TRL's SFTTrainer, and the plain script that PEFT's documentation teaches.

Both get what their users would give them: bf16 autocast, no gradient checkpointing (TRL's default would recompute the
forward), transformers' default optimizer (fused AdamW), no packing (it would change the examples of a step), and the
rows in our order, already grouped by length within each step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.peers.material import Material
from benchmarks.peers.meter import Meter


class Watch(TrainerCallback):
    """Starts the meter with the loop and keeps what the trainer logs after every step."""

    def __init__(self, meter: Meter):
        self._meter = meter
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self._meter.start()

    def on_log(self, *arguments: Any, logs: dict[str, float], **options: Any) -> None:
        if "grad_norm" in logs:
            self.losses.append(logs["loss"])
            self.gradient_norms.append(logs["grad_norm"])


def train_trl(material: Material, meter: Meter, watch: Watch, output: Path) -> None:
    """`SFTTrainer` from a model's name to saved weights."""
    from trl import SFTConfig, SFTTrainer

    options = {"dtype": material.weights_dtype}
    trainer = SFTTrainer(
        model=material.model,
        args=SFTConfig(
            **settings(material, output),
            max_length=material.config.train.max_length,
            packing=False,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            model_init_kwargs=options,
        ),
        train_dataset=Dataset.from_list(material.train),  # tokenized, with labels on the answers only
        quantization_config=quantization(material),
        peft_config=lora(material),
        callbacks=[watch],
    )
    trainer.data_collator = meter.watching(trainer.data_collator)
    trainer.train()
    trainer.save_model(str(output))


def train_plain(material: Material, meter: Meter, watch: Watch, output: Path) -> None:
    """`transformers.Trainer` with PEFT, as in PEFT's quantization guide."""
    set_seed(material.config.seed)
    model = AutoModelForCausalLM.from_pretrained(
        material.model, dtype=getattr(torch, material.weights_dtype), quantization_config=quantization(material)
    )
    if material.quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    adapter = lora(material)
    if adapter is not None:
        model = get_peft_model(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(material.model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings(material, output), train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(material.train),
        data_collator=meter.watching(DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)),
        callbacks=[watch],
    )
    trainer.train()
    trainer.save_model(str(output))


def settings(material: Material, output: Path) -> dict[str, Any]:
    """What both take: our budget, schedule and rate."""
    config = material.config
    train = config.train
    return {
        "output_dir": str(output),
        "per_device_train_batch_size": train.micro_batch,
        "gradient_accumulation_steps": train.batch_size // train.micro_batch,
        "max_steps": train.max_steps,
        "learning_rate": config.method.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": material.warmup_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "bf16": config.hardware.compute_dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "seed": config.seed,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def quantization(material: Material) -> BitsAndBytesConfig | None:
    if material.quantization is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=material.quantization.scheme,
        bnb_4bit_use_double_quant=material.quantization.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, material.config.hardware.compute_dtype),
    )


def lora(material: Material) -> LoraConfig | None:
    adapter = material.adapter
    if adapter is None:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
    )
