"""What every trainer is given: the model, the examples in our order, and the settings of our configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compose import compose
from bench.config import AdapterConfig, QuantizationConfig, RunConfig
from bench.identity import data_folder
from bench.worker import data, models
from bench.worker import data as prepare
from benchmarks.peers.run import Run

Rows = list[dict[str, list[int]]]  # input_ids and labels, as long as the example; -100 on the prompt


@dataclass(frozen=True)
class Material:
    """Read from our configuration, so that no trainer can be given something else by mistake."""

    config: RunConfig
    model: str  # folder with the weights and the tokenizer
    pad_id: int
    train: Rows  # in the order of training, all steps
    validation: Rows

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_size

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.config.train.warmup_fraction * (self.config.train.max_steps or 0))

    @property
    def weights_dtype(self) -> str:
        """float32 or bfloat16: as our methods load the base."""
        in_fp32 = self.config.hardware.compute_dtype == "float32"
        return "float32" if in_fp32 else self.config.method.weights_dtype

    @property
    def adapter(self) -> AdapterConfig | None:
        return self.config.method.adapter

    @property
    def quantization(self) -> QuantizationConfig | None:
        return self.config.method.quantization


def configured(run: Run, folder: Path, cache: Path) -> RunConfig:
    """The run as our harness would be given it."""
    (config,) = compose(run.overrides(str(folder), str(cache)), multirun=False)
    return config


def gather(config: RunConfig) -> Material:
    """Prepare the model and the data if they are not there yet, and read them."""
    train = config.train
    model = models.fetch(config.model, Path(config.paths.cache))
    tokenizer = models.load_tokenizer(config.model, model)
    prepare.prepare(config, tokenizer, data_folder(config))
    prepared = prepare.load_prepared(data_folder(config))
    lengths = [data.row_length(row) for row in prepared.train]
    order = data.training_order(
        lengths, seed=config.seed, epochs=train.epochs, batch_size=train.batch_size, max_steps=train.max_steps
    )
    return Material(
        config=config,
        model=str(model),
        pad_id=int(tokenizer.pad_token_id),
        train=[_row(prepared.train[i]) for i in order],
        validation=[_row(row) for row in prepared.validation],
    )


def _row(row: dict[str, Any]) -> dict[str, list[int]]:
    prompt, answer = row["prompt_ids"], row["answer_ids"]
    return {"input_ids": [*prompt, *answer], "labels": [data.IGNORED] * len(prompt) + list(answer)}
