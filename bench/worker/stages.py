"""The stages of a run, each a function of its `Context`; `__main__` runs one and exits.

prepare     model and data into the cache, both checked
train       one SFT run -> weights, TrainResult
evaluate    test split: held-out loss, greedy answers, scores -> EvaluateResult
regression  the general-capability suite -> RegressionResult
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis import metrics
from bench.spec.config import RunConfig
from bench.spec.failure import ConfigurationError
from bench.spec.layout import artifact_folder, data_folder
from bench.spec.record import EvaluateResult, RegressionResult, Sample, TrainResult
from bench.worker import checks, data, device, heldout, methods, models, prepare
from bench.worker.generate import generate
from bench.worker.instruments.clock import Clock, step_times
from bench.worker.instruments.memory import Memory, open_memory
from bench.worker.loss import SupervisedHead
from bench.worker.progress import Progress

if TYPE_CHECKING:
    from bench.worker.train import Observer


@dataclass
class Context:
    """What every stage is given."""

    folder: Path
    config: RunConfig
    progress: Progress
    clock: Clock
    memory: Memory | None = None

    def measure_on(self, resolved: device.Device) -> Memory:
        """Point the instruments at the device, before anything is loaded on it."""
        self.clock.synchronize = resolved.synchronize
        self.memory = open_memory(resolved.type)
        return self.memory

    @property
    def cache(self) -> Path:
        return Path(self.config.paths.cache)

    @property
    def weights(self) -> Path:
        return artifact_folder(self.config)


def prepare_stage(context: Context) -> dict[str, Any]:
    """Fetch or build model and data; every mistake in either is found here, before any training."""
    config = context.config
    context.progress.phase("check")
    problems = checks.before_download(config)
    if problems:
        raise ConfigurationError(problems)
    context.progress.phase("model")
    source = models.fetch(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    context.progress.phase("data")
    summary = prepare.prepare(config, tokenizer, data_folder(config))
    return {"data": asdict(summary)}


def train_stage(context: Context) -> TrainResult:
    """Train, save the weights, and say what it took."""
    from bench.worker import train  # the trainer takes a second to import

    config, clock, progress = context.config, context.clock, context.progress
    rows = prepare.load_prepared(data_folder(config))
    order = data.training_order(
        [data.row_length(row) for row in rows.train],
        seed=config.seed,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        max_steps=config.train.max_steps,
    )
    steps = data.steps_of(order, config.train.batch_size)
    resolved = device.resolve(config, steps)
    memory = context.measure_on(resolved)
    progress.phase("load")
    memory.enter("load")
    with clock.span("load"):
        source = models.locate(config.model, context.cache)
        tokenizer = models.load_tokenizer(config.model, source)
        base = methods.load_base(
            config, source, resolved.type, resolved.compute_dtype, attn_implementation=resolved.attention
        )
        model = methods.make_trainable(base, config.method, config.seed)
        head = SupervisedHead(model)
    if resolved.compiled == "regional":
        device.compile_layers(model)
    else:
        methods.add_adapters_in_fp32(model, config.method)

    def measure_heldout() -> float:
        with heldout.inference(model, resolved):
            losses = heldout.example_losses(
                model,
                head,
                list(rows.validation),
                batch_size=config.train.micro_batch,
                pad_id=tokenizer.pad_token_id,
                device=resolved,
            )
        return heldout.mean_loss(losses)

    observer = train.Observer(
        folder=context.folder,
        config=config,
        total_steps=steps,
        clock=clock,
        memory=memory,
        progress=progress,
        measure_heldout=measure_heldout,
    )
    trainer = train.SftTrainer(
        model=model,
        args=train.training_arguments(config, resolved, steps, context.weights / "trainer"),
        train_dataset=rows.train,
        callbacks=[observer],
        head=head,
        rows=[rows.train[i] for i in order],
        pad_id=tokenizer.pad_token_id,
        observer=observer,
    )
    trainer.train()
    memory.enter("save")
    with clock.span("save"):
        checkpoint_bytes = _save(model, config, context.weights)
    return _train_result(context, resolved, observer, model, checkpoint_bytes)


def _save(model: Any, config: RunConfig, folder: Path) -> int:
    """Write the weights, then the marker that they are whole. Returns the bytes of the weight files."""
    shutil.rmtree(folder, ignore_errors=True)
    methods.save_trained(model, config.method, folder)
    (folder / "complete").touch()
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def _train_result(
    context: Context, resolved: device.Device, observer: Observer, model: Any, checkpoint_bytes: int
) -> TrainResult:
    timed = [s for s in observer.steps if s.timed]
    seconds = sum(s.seconds for s in timed)
    times = step_times(
        [s.seconds for s in observer.steps], context.config.train.untimed_steps, resolved.compiled == "regional"
    )

    def rate(count: int) -> float | None:
        return count / seconds if timed else None

    trainable = [p for p in model.parameters() if p.requires_grad]
    context.clock.spans_seconds["train_steps"] = sum(s.seconds for s in observer.steps)
    assert context.memory is not None
    return TrainResult(
        data_stream_sha256=observer.stream.hexdigest(),
        steps=len(observer.steps),
        examples=observer.counts.examples,
        tokens=observer.counts.tokens,
        supervised_tokens=observer.counts.supervised_tokens,
        positions=observer.counts.positions,
        timed_steps=len(timed),
        train_tokens_per_second=rate(sum(s.tokens for s in timed)),
        supervised_tokens_per_second=rate(sum(s.supervised_tokens for s in timed)),
        positions_per_second=rate(sum(s.positions for s in timed)),
        step_seconds_median=times.median,
        step_seconds_p90=times.p90,
        step_seconds_p99=times.p99,
        train_seconds=observer.steps[-1].elapsed_seconds,
        compile_seconds=times.compile,
        heldout=observer.heldout,
        parameters_total=methods.parameters_total(model),
        parameters_trainable=sum(p.numel() for p in trainable),
        trainable_dtype=str(trainable[0].dtype).removeprefix("torch."),
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_dtype=methods.checkpoint_dtype(model, context.config.method),
        memory=context.memory.close(),
        breakdown=observer.breakdown,
        spans_seconds=dict(context.clock.spans_seconds),
        environment=resolved.environment(),
        model_revision=getattr(model.config, "_commit_hash", None),
    )


def _load_tuned(context: Context) -> tuple[Any, Any, device.Device]:
    """(model, tokenizer, device) of the run's result, ready for evaluation."""
    config = context.config
    resolved = device.resolve(config)
    memory = context.measure_on(resolved)
    context.progress.phase("load")
    memory.enter("load")
    with context.clock.span("load"):
        source = models.locate(config.model, context.cache)
        tokenizer = models.load_tokenizer(config.model, source)
        model = methods.load_trained(config, source, context.weights, resolved.type, resolved.compute_dtype)
    return model, tokenizer, resolved


def evaluate_stage(context: Context) -> EvaluateResult:
    """Score the test split: the loss of the reference answers, and greedy answers with every metric."""
    config, clock, progress = context.config, context.clock, context.progress
    rows = list(prepare.load_prepared(data_folder(config)).test)
    model, tokenizer, resolved = _load_tuned(context)
    assert context.memory is not None
    context.memory.enter("heldout")
    progress.phase("test loss", len(rows))
    with clock.span("heldout"), heldout.inference(model, resolved):
        losses = heldout.example_losses(
            model,
            SupervisedHead(model),
            rows,
            batch_size=config.hardware.generate_batch,
            pad_id=tokenizer.pad_token_id,
            device=resolved,
            advance=progress.advance,
        )
    context.memory.enter("generate")
    progress.phase("generate", len(rows))
    with clock.span("generate"), heldout.inference(model, resolved):
        answers = generate(
            model,
            tokenizer,
            [row["prompt_ids"] for row in rows],
            max_new_tokens=config.task.max_new_tokens,
            batch_size=config.hardware.generate_batch,
            device=resolved,
            advance=progress.advance,
        )
    with clock.span("score"):
        scores = metrics.score_all(
            config.task.metrics, [a.text for a in answers], [r["reference"] for r in rows], labels=config.task.labels
        )
    samples = [
        Sample(
            row["example_id"], row["prompt"], row["reference"], answer.text, score, nats, tokens, answer.cut_at_limit
        )
        for row, answer, score, (nats, tokens) in zip(rows, answers, scores, losses, strict=True)
    ]
    write_lines(context.folder / "samples.jsonl.gz", (asdict(sample) for sample in samples))
    generated = sum(answer.tokens for answer in answers)
    return EvaluateResult(
        examples=len(samples),
        scores={name: sum(s.scores[name] for s in samples) / len(samples) for name in config.task.metrics},
        heldout_loss=heldout.mean_loss(losses),
        heldout_tokens=sum(tokens for _, tokens in losses),
        generated_tokens=generated,
        generate_tokens_per_second=generated / clock.spans_seconds["generate"],
        cut_at_limit=sum(answer.cut_at_limit for answer in answers),
        memory=context.memory.close(),
        spans_seconds=dict(clock.spans_seconds),
        environment=resolved.environment(),
    )


def regression_stage(context: Context) -> RegressionResult:
    """Run the regression suite on the tuned (or untouched) model."""
    from bench.worker.regression import run_suite  # lm-eval takes seconds to import

    config = context.config
    model, tokenizer, resolved = _load_tuned(context)
    assert context.memory is not None
    context.memory.enter("regression")
    context.progress.phase("regression")
    with context.clock.span("regression"), heldout.inference(model, resolved):
        outcome = run_suite(
            config.suite,
            model,
            tokenizer,
            context.cache,
            max_length=min(config.train.max_length, config.model.max_context),
            autocast_dtype=resolved.autocast_dtype,
        )
    write_lines(context.folder / "regression_items.jsonl.gz", (asdict(item) for item in outcome.items))
    return RegressionResult(
        suite=config.suite.name,
        tasks=outcome.tasks,
        memory=context.memory.close(),
        spans_seconds=dict(context.clock.spans_seconds),
        environment=resolved.environment(),
    )


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write gzipped JSON lines; the modification time is left out, so that equal content gives equal files."""
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


STAGES = {
    "prepare": prepare_stage,
    "train": train_stage,
    "evaluate": evaluate_stage,
    "regression": regression_stage,
}
