"""The training stage: one SFT run by `transformers.Trainer`, with our loss, data order and instruments.

Everything here is the same for every method; what differs is in `methods`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from bench.analysis.rates import hopeless
from bench.spec.config import RunConfig
from bench.spec.record import HeldoutPoint, MemoryBreakdown, Step
from bench.worker import data
from bench.worker.device import Device
from bench.worker.instruments.clock import Clock
from bench.worker.instruments.memory import Memory, breakdown
from bench.worker.instruments.tokens import TokenCounts, TokenStream
from bench.worker.loss import Batch, SupervisedHead
from bench.worker.methods import OPTIMIZERS
from bench.worker.progress import Progress

# The head and the loss stay ours: they see supervised positions only.
_LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant_with_warmup": "constant_with_warmup"}


class SftTrainer(Trainer):
    """`Trainer` with the loss on supervised positions and the examples in a fixed order."""

    def __init__(
        self, *, head: SupervisedHead, rows: Any, pad_id: int, packing: bool, observer: Observer, **options: Any
    ):
        super().__init__(**options)
        self._head, self._rows, self._pad_id, self._packing, self._observer = head, rows, pad_id, packing, observer
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the effective batch's tokens,
        self.model_accepts_loss_kwargs = True  # which the trainer counts and passes when this is set

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self._rows,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=False,  # the rows are in training order already
            collate_fn=data.pack if self._packing else lambda rows: data.collate(rows, self._pad_id),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        self._observer.step_starts()
        return super().get_batch_samples(*arguments, **options)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        self._observer.forward_starts()
        losses, _ = self._head.token_losses(model, inputs)
        loss = losses.sum() / num_items_in_batch
        self._observer.consumed(inputs, loss.detach())
        return loss * self.accelerator.num_processes  # DDP averages gradients; ours are already parts of a sum


class Observer(TrainerCallback):
    """Times, counts and writes down every optimizer step; takes held-out losses between steps."""

    def __init__(
        self,
        *,
        folder: Path,
        config: RunConfig,
        total_steps: int,
        clock: Clock,
        memory: Memory,
        progress: Progress,
        measure_heldout: Any,
    ):
        self.heldout: list[HeldoutPoint] = []
        self.steps: list[Step] = []
        self.counts = TokenCounts()
        self.timed_counts = TokenCounts()  # of the timed steps only
        self.stream = TokenStream()
        self.breakdown: MemoryBreakdown | None = None
        self.stopped_early: str | None = None
        self._trial = config.trial
        self._untimed, self._total = config.train.untimed_steps, total_steps
        self._heldout_steps = heldout_steps(total_steps, config.train.heldout_points)
        self._clock, self._memory, self._progress = clock, memory, progress
        self._measure_heldout = measure_heldout
        self._consumed: list[tuple[Batch, torch.Tensor]] = []
        self._started = self._seconds = self._elapsed = 0.0
        self._step_counts = TokenCounts()
        self._steps_file = folder / "steps.jsonl"

    def step_starts(self) -> None:
        self._started = self._clock.mark()

    def forward_starts(self) -> None:
        self._progress.part = "forward"

    def consumed(self, batch: Batch, loss: torch.Tensor) -> None:
        """Keep a micro-batch; it is hashed and counted after the step, outside the timed region."""
        self._progress.part = "backward"
        self._consumed.append((batch, loss))

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self._steps_file.write_text("")
        self._take_heldout(step=0)
        self._enter_training()

    def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        self._progress.part = "optimizer"

    def on_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        if self.breakdown is None:  # in the first warm-up step: gradients and optimizer state both exist
            self.breakdown = breakdown(options["model"], _unwrapped(options["optimizer"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._seconds = self._clock.mark() - self._started
        self._elapsed += self._seconds
        self._progress.part = None
        rows = [part for batch, _ in self._consumed for part in data.unpack(batch)]
        counts = [self.stream.consume(b["input_ids"], b["labels"], b["attention_mask"]) for b in rows]
        self._step_counts = sum(counts, TokenCounts())
        self.counts = self.counts + self._step_counts
        if state.global_step > self._untimed:
            self.timed_counts = self.timed_counts + self._step_counts

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Called by the trainer right after every step, with the gradient norm and the rate that were used."""
        logs = options["logs"]
        if "grad_norm" not in logs:
            return
        done = state.global_step
        loss = float(sum(loss for _, loss in self._consumed))
        self._consumed = []
        step = Step(
            step=done,
            loss=loss if math.isfinite(loss) else None,
            gradient_norm=_finite(logs["grad_norm"]),
            learning_rate=logs["learning_rate"],
            seconds=self._seconds,
            tokens=self._step_counts.tokens,
            supervised_tokens=self._step_counts.supervised_tokens,
            positions=self._step_counts.positions,
            elapsed_seconds=self._elapsed,
            timed=done > self._untimed,
        )
        self.steps.append(step)
        with self._steps_file.open("a", encoding="utf-8") as file:  # closed each time: a killed run keeps its steps
            file.write(json.dumps(asdict(step)) + "\n")
        self._progress.advance(done, loss=step.loss, tokens_per_second=step.tokens / step.seconds)
        if done in self._heldout_steps:
            self._take_heldout(done)
            if done < self._total:
                self._continue(control)

    def _continue(self, control: Any) -> None:
        """Go on training, unless this is a trial of a learning rate that proves hopeless."""
        self.stopped_early = hopeless(self._trial, self.heldout) if self._trial else None
        if self.stopped_early:
            control.should_training_stop = True
        else:
            self._enter_training()

    def _enter_training(self) -> None:
        self._memory.enter("train")
        self._progress.phase("train", self._total)
        self._progress.advance(len(self.steps))

    def _take_heldout(self, step: int) -> None:
        self._memory.enter("heldout")
        self._progress.phase("heldout")
        with self._clock.span("heldout"):
            loss = self._measure_heldout()
        self.heldout.append(HeldoutPoint(step, self.counts.tokens, self._elapsed, _finite(loss)))


def training_arguments(config: RunConfig, device: Device, steps: int, output: Path) -> TrainingArguments:
    """Our settings in `transformers`' terms; saving, logging to services and evaluation are ours."""
    train, method = config.train, config.method
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=train.micro_batch,
        gradient_accumulation_steps=train.batch_size // train.micro_batch,
        max_steps=steps,
        learning_rate=method.learning_rate or 0.0,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        warmup_steps=math.ceil(train.warmup_fraction * steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=OPTIMIZERS[method.optimizer],
        bf16=device.compute_dtype is torch.bfloat16,
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
        save_strategy="no",
        remove_unused_columns=False,
    )


def heldout_steps(total_steps: int, points: int) -> set[int]:
    """The steps after which the held-out loss is taken, evenly spread, the last one included.

    >>> heldout_steps(32, 4)
    {8, 16, 24, 32}
    """
    points = min(points, total_steps)
    return {round(total_steps * (i + 1) / points) for i in range(points)}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
