"""The training stage: one SFT run by `transformers.Trainer`, with our loss, data order and instruments.

Everything here is the same for every method; what differs is in `methods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from bench.config import RunConfig
from bench.worker import data, sharding
from bench.worker.device import Device
from bench.worker.loss import Batch, SupervisedHead
from bench.worker.methods import OPTIMIZERS
from bench.worker.observer import Observer
from bench.worker.resume import Keeper
from bench.worker.shares import deal, idle_row
from bench.worker.team import ALONE, Team

# The head and the loss stay ours: they see supervised positions only.
_LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant_with_warmup": "constant_with_warmup"}


class SftTrainer(Trainer):
    """`Trainer` with the loss on supervised positions and the examples in a fixed order."""

    def __init__(
        self,
        *,
        head: SupervisedHead,
        rows: Any,
        pad_id: int,
        packing: bool,
        observer: Observer,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        team: Team = ALONE,
        keeper: Keeper | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self._head, self._rows, self._pad_id, self._packing, self._observer = head, rows, pad_id, packing, observer
        self._autocast, self._team, self._keeper = autocast, team, keeper
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the effective batch's tokens,
        self.model_accepts_loss_kwargs = True  # which the trainer counts, over all processes, when this is set

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        sharding.cut_on_cpu_too(self)

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows, size = self._rows, self.args.per_device_train_batch_size  # the rows are in training order already
        batch_size = size * self.args.gradient_accumulation_steps * self._team.size
        dataset: Any = [*rows, idle_row(rows)]
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=deal(
                len(rows), batch_size=batch_size, micro_batch=size, rank=self._team.rank, size=self._team.size
            ),
            collate_fn=self._collate,
        )
        # Dealt already: accelerate would deal whole micro-batches too, but even out a last step with repeated examples.
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def _get_grad_norm(self, *arguments: Any, **options: Any) -> Any:
        norm = super()._get_grad_norm(*arguments, **options)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm  # else of this process's part alone

    def micro_batches(self, steps: int) -> Iterator[Batch]:
        """What the first optimizer steps consume, in order."""
        size = self.args.per_device_train_batch_size
        end = min(steps * size * self.args.gradient_accumulation_steps, len(self._rows))
        for start in range(0, end, size):
            yield self._collate(self._rows[start : min(start + size, end)])

    def _collate(self, rows: Any) -> Batch:
        return data.pack(rows) if self._packing else data.collate(rows, self._pad_id)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        if self._keeper is not None:
            with self._observer.aside("checkpoint"):
                super()._save_checkpoint(*arguments, **options)
                self._keeper.written(self.state.global_step)

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        self._observer.step_starts()
        return super().get_batch_samples(*arguments, **options)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        self._observer.forward_starts()
        with self._autocast():
            losses, _ = self._head.token_losses(model, inputs)
        loss = losses.sum() / num_items_in_batch
        self._observer.consumed(inputs, loss.detach())
        return loss * self.accelerator.num_processes  # gradients are averaged; ours are already parts of a sum


def training_arguments(
    config: RunConfig, device: Device, steps: int, output: Path, team: Team = ALONE
) -> TrainingArguments:
    """Our settings in `transformers`' terms; saving, logging to services and evaluation are ours."""
    train, method = config.train, config.method
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=train.fitted_micro_batch,
        gradient_accumulation_steps=train.batch_size // (train.fitted_micro_batch * team.size),
        max_steps=steps,
        learning_rate=method.learning_rate or 0.0,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=math.ceil(train.warmup_fraction * steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=OPTIMIZERS[method.optimizer],
        bf16=device.compute_dtype is torch.bfloat16 and not sharding.autocasts_itself(config),
        activation_checkpointing=train.gradient_checkpointing or None,
        activation_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        use_cpu=device.type == "cpu",
        seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        use_liger_kernel=train.kernels == "liger",
        liger_kernel_config=_LIGER,
        disable_tqdm=True,
        report_to=[],
        save_strategy="steps" if train.checkpoint_every_steps else "no",
        save_steps=train.checkpoint_every_steps or 500,  # unused where nothing is saved
        # Older checkpoints are deleted by `checkpoints.mark`, when the new one is whole and on the disk.
        remove_unused_columns=False,
        **sharding.arguments(config, device.compute_dtype),
    )
