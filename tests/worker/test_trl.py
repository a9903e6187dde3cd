"""The training stage against TRL's SFTTrainer, an independent trainer: the same losses and gradient norms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, TrainerCallback

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import data_folder
from bench.worker import data, methods, models
from bench.worker import prepare as prepare_stage
from bench.worker import train as train_stage
from bench.worker.main import Context, Progress

pytest.importorskip("trl", reason="TRL is not installed: pip install -c constraints.txt -e '.[peers]'")

STEPS = 20


class Log(TrainerCallback):
    """Keeps what the trainer says after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_log(self, *arguments: Any, logs: dict[str, float], **options: Any) -> None:
        if "grad_norm" in logs:
            self.steps.append(dict(logs))


def ours(config: RunConfig, folder: Path) -> list[dict[str, Any]]:
    context = Context(folder, config, Progress(folder, "train"))
    prepare_stage.run(context)
    train_stage.run(context)
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def theirs(config: RunConfig, folder: Path) -> list[dict[str, float]]:
    """TRL from the model's folder, in fp32, on the same rows in the same order."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    source = models.locate(config.model, Path(config.paths.cache))
    log = Log()
    method = config.method
    trainer = SFTTrainer(
        model=source,
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            model_init_kwargs={"dtype": "float32"},
            max_length=config.train.max_length,
            per_device_train_batch_size=config.train.micro_batch,
            gradient_accumulation_steps=config.train.batch_size // config.train.micro_batch,
            max_steps=STEPS,
            learning_rate=method.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(config.train.warmup_fraction * STEPS),
            max_grad_norm=config.train.max_grad_norm,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=config.seed,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows_in_order(config)),
        quantization_config=quantization(config),
        peft_config=None if method.adapter is None else lora(config),
        callbacks=[log],
    )
    if method.quantization is not None:
        # TRL rounds the adapters of a quantized base to bf16. That is a choice of what to train, not how; undone here.
        start = dict(methods.make_trainable(load_base(config, source), method, config.seed).named_parameters())
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                assert parameter.dtype is torch.bfloat16
                parameter.data = start[name].data.clone()
    trainer.train()
    return log.steps


def rows_in_order(config: RunConfig) -> list[dict[str, list[int]]]:
    rows = data.load_prepared(data_folder(config)).train
    order = data.training_order(
        [data.row_length(r) for r in rows], seed=config.seed, epochs=8, batch_size=4, max_steps=STEPS
    )
    return [
        {
            "input_ids": [*rows[i]["prompt_ids"], *rows[i]["answer_ids"]],
            "labels": [-100] * len(rows[i]["prompt_ids"]) + rows[i]["answer_ids"],
        }
        for i in order
    ]


def load_base(config: RunConfig, source: str) -> Any:
    return methods.load_base(config, source, "cpu", torch.float32)


def quantization(config: RunConfig) -> BitsAndBytesConfig | None:
    if config.method.quantization is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def lora(config: RunConfig) -> Any:
    from peft import LoraConfig

    adapter = config.method.adapter
    assert adapter is not None
    return LoraConfig(
        task_type="CAUSAL_LM", r=adapter.rank, lora_alpha=adapter.alpha, target_modules=adapter.target_modules
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # TRL and PEFT import deprecated parts of transformers
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_losses_and_gradient_norms_equal_trl(smoke, tmp_path: Path, method: str) -> None:
    # transformers' warm-up starts at 0, ours above it
    overrides = (
        "train.warmup_fraction=0",
        "hardware.compute_dtype=float32",
        "train.batch_size=4",
        "train.micro_batch=2",
        "train.epochs=8",
    )
    (config,) = compose(smoke(f"method={method}", f"train.max_steps={STEPS}", *overrides), multirun=False)
    steps, expected = ours(config, tmp_path), theirs(config, tmp_path)
    assert len(steps) == len(expected) == STEPS
    assert [s["loss"] for s in steps] == pytest.approx([s["loss"] for s in expected], rel=1e-4)
    assert [s["gradient_norm"] for s in steps] == pytest.approx([s["grad_norm"] for s in expected], rel=1e-4)
