"""The training stage: one SFT run by `transformers.Trainer`, with our loss, data order and instruments.

Everything here is the same for every method; what differs is in `methods`. The result is the saved weights,
`steps.jsonl`, and a `TrainResult` with the checksums of the weights.

    >>> run(context).train_tokens_per_second
    482.1
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler

from bench.config import CUTS_WEIGHTS, DEEPSPEED, RunConfig
from bench.identity import WEIGHTS, checksums, data_folder, flush_to_disk
from bench.planner.time import LinearCosts, needed_flops
from bench.record import TrainResult
from bench.worker import attention, data, device, methods, models, multi, reach, resume
from bench.worker.device import Device
from bench.worker.instruments.clock import step_times
from bench.worker.instruments.energy import open_energy
from bench.worker.instruments.memory import Memory
from bench.worker.instruments.tokens import linear_costs, matmul_peak_flops_per_second
from bench.worker.loss import Batch, SupervisedHead, example_losses, inference, mean_loss
from bench.worker.main import Context, DivergedError
from bench.worker.methods import OPTIMIZERS
from bench.worker.multi import ALONE, Team
from bench.worker.observe import Observer
from bench.worker.resume import Keeper

# The head and the loss stay ours: they see supervised positions only.
_LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


def run(context: Context) -> TrainResult:
    """One SFT run, from the base to saved weights."""
    config, clock, team = _with_micro_batch(context), context.clock, context.team
    rows = data.load_prepared(data_folder(config))
    order = order_of(config, rows)
    steps = data.steps_of(order, config.train.batch_size)
    resolved = device.resolve(config, steps, team.size)
    team.join(resolved.type, config.hardware.stage_timeout_seconds)
    device.limit_memory(config.hardware, resolved.type)
    with clock.span("calibrate"):
        peak = matmul_peak_flops_per_second(resolved.type, resolved.compute_dtype, resolved.synchronize)
    memory = context.measure_on(resolved)
    model, head, tokenizer = load_trainable(context, resolved, memory)
    resolved = replace(resolved, attention=model.config._attn_implementation)  # what the model took
    models.stop_at(model, {ids[-1] for ids in rows.test["answer_ids"]})
    parameters, costs = parameter_counts(config, model), linear_costs(model)  # before anything is cut
    heldout = list(rows.validation)[: config.train.heldout_examples]
    how: dict[str, Any] = {"batch_size": config.train.fitted_micro_batch, "pad_id": tokenizer.pad_token_id}
    measure = partial(heldout_loss, context, model, head, multi.share_of_rows(heldout, team), device=resolved, **how)
    observer = Observer(context, config, steps, memory, open_energy(resolved.type), measure)
    ordered = [rows.train[i] for i in order]
    trainer = _trainer(context, config, resolved, steps, ordered, model, head, tokenizer.pad_token_id, observer)
    context.load.start()
    trainer.keeper.train(trainer) if trainer.keeper else trainer.train()
    environment = resolved.environment(context.load.read())
    observer.energy.stop()
    checkpoint_bytes, weights = _save(model, trainer, config, context, memory)
    return TrainResult(
        **_observed(resolved, observer, costs, sum(team.all(peak))),
        **parameters,
        **multi.memory_of_all(team, config, observer),
        checkpoint_bytes=checkpoint_bytes,
        weights=weights,
        heldout_examples=len(heldout),
        heldout_left_out=len(rows.validation) - len(heldout),
        micro_batch=config.train.fitted_micro_batch,
        spans_seconds=clock.read() | {"train_steps": sum(step.seconds for step in observer.own_steps)},
        environment=environment,
        model_revision=getattr(model.config, "_commit_hash", None),
    )


def heldout_loss(context: Context, model: Any, head: SupervisedHead, rows: list[Any], **how: Any) -> float:
    """Nats a token over the rows of all processes; `how` as `example_losses` takes it."""
    context.progress.phase("heldout", len(rows))
    with inference(model, how["device"]):
        losses = example_losses(model, head, rows, advance=context.progress.advance, **how)
    return mean_loss([loss for part in context.team.all(losses) for loss in part])


def _trainer(
    context: Context, config: RunConfig, resolved: Device, steps: int, rows: list[Any], model: Any,
    head: SupervisedHead, pad_id: int, observer: Observer,
) -> SftTrainer:  # fmt: skip
    """The trainer of a run; `rows` are in the order of training."""
    kept = context.weights / resume.FOLDER
    keeper = Keeper(kept, config, resolved, observer, model) if config.train.checkpoint_every_steps else None
    arguments = training_arguments(config, resolved, steps, kept, context.team)
    padded = partial(data.collate, pad_id=pad_id, multiple=data.padding_multiple(resolved.type))
    trainer = SftTrainer(
        model=model,
        args=arguments,
        optimizers=(methods.make_optimizer(model, config.method, arguments), None),
        train_dataset=rows,
        data_collator=data.pack if config.train.packing else padded,
        callbacks=[observer, keeper] if keeper else [observer],
        head=head,
        observer=observer,
        autocast=resolved.autocast if config.hardware.strategy == "fsdp" else nullcontext,
        team=context.team,
        keeper=keeper,
    )
    if points := point_steps(config.evaluation.points, steps):
        trainer.add_callback(PointSaver(trainer, config, context, points))
    return trainer


def _with_micro_batch(context: Context) -> RunConfig:
    """The run's description; `train.micro_batch=auto` replaced by the number that the parent left in `fit.json`."""
    config = context.config
    if config.train.micro_batch != "auto":
        return config
    found = json.loads((context.folder / "fit.json").read_bytes())
    return replace(config, train=replace(config.train, micro_batch=found["micro_batch"]))


def order_of(config: RunConfig, rows: data.Prepared) -> list[int]:
    """The training examples in the order of training."""
    return data.training_order(
        [data.row_length(row) for row in rows.train],
        seed=config.seed,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        max_steps=config.train.max_steps,
    )


def load_trainable(context: Context, resolved: Device, memory: Memory) -> tuple[Any, SupervisedHead, Any]:
    """(trainable model, its output head, tokenizer) on the device. DivergedError: a weight is not finite."""
    config = context.config
    context.progress.phase("load")
    memory.enter("load")
    with context.clock.span("load"):
        source = models.locate(config.model, context.cache)
        tokenizer = models.load_tokenizer(config.model, source)
        products = resolved.attention == attention.PRODUCTS
        where = context.team.device(resolved.type)
        how = {"attn_implementation": "sdpa" if products else resolved.attention}
        base = methods.load_to_train(config, source, where, resolved.compute_dtype, **how)  # `make_once` has a lock
        if products:
            attention.use_products(base)
        model = methods.make_trainable(base, config.method, config.seed)
        methods.start_adapter(model, config, source)
        methods.leave_bf16_grid(model, config, resolved.compute_dtype)
        head = SupervisedHead(model, whole=config.hardware.strategy in CUTS_WEIGHTS)
        reach.check_loaded(model, config, resolved)
    if resolved.compiled == "regional":
        device.compile_layers(model)
    else:
        methods.add_adapters_in_fp32(model, config.method)
    if broken := models.not_finite(model):
        raise DivergedError(f"{broken[0]} is not finite", step=0)
    return model, head, tokenizer


class SftTrainer(Trainer):
    """`Trainer` with the loss on supervised positions and the examples in a fixed order."""

    def __init__(
        self,
        *,
        head: SupervisedHead,
        observer: Observer,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        team: Team = ALONE,
        keeper: Keeper | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self._head, self.observer, self._autocast, self._team, self.keeper = head, observer, autocast, team, keeper
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the effective batch's tokens,
        self.model_accepts_loss_kwargs = True  # which the trainer counts, over all processes, when this is set

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        multi.cut_on_cpu_too(self)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """transformers' schedule of one step more, from its second step on: the first step's rate is above 0."""
        optimizer = optimizer or self.optimizer
        warmup_steps = self.args.get_warmup_steps(num_training_steps)
        theirs = get_scheduler(self.args.lr_scheduler_type, optimizer, warmup_steps + 1, num_training_steps + 1)
        factor = theirs.lr_lambdas[0]
        self.lr_scheduler = LambdaLR(optimizer, lambda step: factor(step + 1))
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.train_dataset  # in training order already
        size, team = self.args.per_device_train_batch_size, self._team
        batch_size = size * self.args.gradient_accumulation_steps * team.size
        dealt = multi.deal(len(rows), batch_size=batch_size, micro_batch=size, rank=team.rank, size=team.size)
        dataset: Any = [*rows, multi.idle_row(rows)]
        loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=dealt, collate_fn=self.data_collator)
        # Dealt already: accelerate would deal whole micro-batches too, but even out a last step with repeated examples.
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def _get_grad_norm(self, *arguments: Any, **options: Any) -> Any:
        norm = super()._get_grad_norm(*arguments, **options)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm  # else of this process's part alone

    def micro_batches(self, steps: int) -> Iterator[Batch]:
        """The micro-batches of the first optimizer steps, in order."""
        size, rows = self.args.per_device_train_batch_size, cast("Any", self.train_dataset)
        rows = rows[: steps * size * self.args.gradient_accumulation_steps]
        for start in range(0, len(rows), size):
            yield self.data_collator(rows[start : start + size])

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        if self.keeper is not None:
            with self.observer.aside("checkpoint"):
                super()._save_checkpoint(*arguments, **options)
                self.keeper.written(self.state.global_step)

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        self.observer.step_starts()
        return super().get_batch_samples(*arguments, **options)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        self.observer.forward_starts()
        with self._autocast():
            losses, _ = self._head.token_losses(model, inputs)
        loss = losses.sum() / num_items_in_batch
        self.observer.consumed(inputs, loss.detach())
        return loss * self.accelerator.num_processes  # gradients are averaged; ours are already parts of a sum


class PointSaver(TrainerCallback):
    """Keeps the weights behind the steps of `evaluation.points`, outside of the timed steps; all processes must call.

    The last step's weights are the run's own.
    """

    def __init__(self, trainer: SftTrainer, config: RunConfig, context: Context, steps: Collection[int]):
        self._trainer, self._config, self._context, self._steps = trainer, config, context, steps

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Called after each step, when the observer has measured it."""
        if "grad_norm" in options["logs"] and state.global_step in self._steps:
            folder = self._context.weights / resume.POINTS / str(state.global_step)
            with self._trainer.observer.aside("keep a point"):
                whole = multi.whole_state(self._trainer, self._config)
                if self._context.team.is_first:
                    methods.save_trained(options["model"], self._config.method, folder, whole)
                self._context.team.wait()


def point_steps(points: Collection[float], steps: int) -> list[int]:
    """The optimizer steps behind which weights are kept; the last step is left out.

    >>> point_steps([0.1, 0.25, 1.0], 8)
    [1, 2]
    """
    return sorted({max(1, round(share * steps)) for share in points} - {steps})


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
        lr_scheduler_type=train.schedule,
        warmup_steps=math.ceil(train.warmup_fraction * steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=OPTIMIZERS[method.optimizer],
        # Under FSDP and DeepSpeed the autocast is ours or DeepSpeed's: accelerate's bf16 would cast the weights too.
        bf16=device.compute_dtype is torch.bfloat16 and config.hardware.strategy not in ("fsdp", *DEEPSPEED),
        activation_checkpointing=train.gradient_checkpointing or None,
        activation_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        use_cpu=device.type == "cpu",
        seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        use_liger_kernel=train.kernels == "liger",
        liger_kernel_config=_LIGER,
        disable_tqdm=True,
        report_to=["tensorboard"] if config.tracking.kind == "tensorboard" else [],  # others: `sweep.tracking`
        save_strategy="steps" if train.checkpoint_every_steps else "no",
        save_steps=train.checkpoint_every_steps or 500,  # unused where nothing is saved
        # Older checkpoints are deleted by `Keeper.written`, when the new one is whole and on the disk.
        remove_unused_columns=False,
        **multi.arguments(config, device.compute_dtype),
    )


def _observed(resolved: Device, observer: Observer, costs: LinearCosts, peak_flops_per_second: float) -> dict[str, Any]:
    """Counts of the whole run, and speeds over the timed steps of this process; None if no step was timed."""
    own = observer.own_steps
    timed_seconds = sum(step.seconds for step in own if step.timed)
    counts, timed = observer.counts, observer.timed_counts
    needed = needed_flops(
        costs, tokens=timed.tokens, supervised_tokens=timed.supervised_tokens, attended_pairs=timed.attended_pairs
    )
    times = step_times([s.seconds for s in own], [s.timed for s in own], compiled=resolved.compiled == "regional")

    def per_second(count: int) -> float | None:
        return count / timed_seconds if timed_seconds else None

    return {
        "data_stream_sha256": observer.tokens.hexdigest(),
        "steps": len(observer.steps),
        "examples": counts.examples,
        "tokens": counts.tokens,
        "supervised_tokens": counts.supervised_tokens,
        "positions": counts.positions,
        "train_seconds": observer.steps[-1].elapsed_seconds,
        "heldout": observer.heldout,
        "resumed_at_steps": observer.resumed_at_steps,
        "energy_wh": observer.energy.read().get("train"),
        "timed_steps": sum(step.timed for step in own),
        "train_tokens_per_second": per_second(timed.tokens),
        "supervised_tokens_per_second": per_second(timed.supervised_tokens),
        "positions_per_second": per_second(timed.positions),
        "needed_flops_per_second": per_second(needed),
        "matmul_peak_flops_per_second": peak_flops_per_second,
        "mfu": needed / timed_seconds / peak_flops_per_second if timed_seconds else None,
        **times,
    }


def parameter_counts(config: RunConfig, model: Any) -> dict[str, Any]:
    """How many there are, and how they are kept."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    dtype = str(trainable[0].dtype).removeprefix("torch.")
    return {
        "parameters_total": methods.parameters_total(model),
        "parameters_trainable": sum(p.numel() for p in trainable),
        "parameters_quantized": methods.parameters_quantized(model),
        "trainable_dtype": dtype,
        "checkpoint_dtype": "bfloat16" if config.method.adapter is None else dtype,  # as `save_trained` writes them
    }


def _save(
    model: Any, trainer: SftTrainer, config: RunConfig, context: Context, memory: Memory
) -> tuple[int | None, dict[str, str]]:
    """Write the weights; the first process does, and all must call.

    Returns:
        bytes of the weights, and SHA-256 by file; None and none: a trial keeps none, and only the first process knows.
    """
    context.progress.phase("save")
    memory.enter("save")
    folder, size_bytes, weights = context.weights, None, dict[str, str]()
    with context.clock.span("save"):
        state = multi.whole_state(trainer, config)
        if context.team.is_first and config.trial is not None:
            shutil.rmtree(folder, ignore_errors=True)
        elif context.team.is_first:
            resume.delete_older_weights(folder)
            methods.reduce_intruders(model, config.method)
            methods.save_trained(model, config.method, folder, state)
            flush_to_disk(folder)
            along = [f"{resume.POINTS}/*/{pattern}" for pattern in WEIGHTS]
            weights = checksums(folder, context.cache, [*WEIGHTS, *along])
            shutil.rmtree(folder / resume.FOLDER, ignore_errors=True)
            size_bytes = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        context.team.wait()
    return size_bytes, weights
