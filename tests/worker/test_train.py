"""The training stage against a plain loop that shares no code with it but the model and the data."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import get_scheduler

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import artifact_folder, damaged, data_folder
from bench.record import TrainResult
from bench.worker import data, methods, models
from bench.worker import prepare as prepare_stage
from bench.worker import train as train_stage
from bench.worker.device import compile_layers
from bench.worker.main import Context, Progress

STEPS = 20
FP32 = ("hardware.compute_dtype=float32", "train.batch_size=4", f"train.max_steps={STEPS}", "train.epochs=8")


def configured(smoke, *overrides: str) -> RunConfig:
    (config,) = compose(smoke(*overrides), multirun=False)
    return config


def trained(config: RunConfig, folder: Path) -> tuple[TrainResult, list[dict]]:
    folder.mkdir(exist_ok=True)
    context = Context(folder, config, Progress(folder, "train"))
    prepare_stage.run(context)
    result = train_stage.run(context)
    return result, [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def plain_loop(config: RunConfig) -> list[tuple[float, float]]:
    """(loss, gradient norm) by step: whole batches, transformers' own loss over all positions, no accumulation."""
    source = models.locate(config.model, Path(config.paths.cache))
    rows = data.load_prepared(data_folder(config)).train
    order = data.training_order(
        [data.row_length(r) for r in rows], seed=config.seed, epochs=8, batch_size=4, max_steps=STEPS
    )
    base = methods.load_base(config, source, "cpu", torch.float32)
    model = methods.make_trainable(base, config.method, config.seed).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.method.learning_rate, weight_decay=0)
    warmup = math.ceil(config.train.warmup_fraction * STEPS)
    half = [(1 + math.cos(math.pi * step / (STEPS - warmup))) / 2 for step in range(STEPS - warmup)]
    rates = [(step + 1) / (warmup + 1) for step in range(warmup)] + half  # above 0 from the first step on
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [*rates, 0.0].__getitem__)
    seen = []
    for step in range(STEPS):
        batch = data.collate([rows[i] for i in order[4 * step : 4 * step + 4]], pad_id=0)
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable, config.train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen.append((loss.item(), norm.item()))
    return seen


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_losses_and_gradient_norms_equal_a_plain_loop(smoke, tmp_path: Path, method: str) -> None:
    config = configured(smoke, f"method={method}", "train.micro_batch=2", *FP32)
    result, steps = trained(config, tmp_path / "run")
    expected = plain_loop(config)
    assert result.steps == STEPS
    assert [s["loss"] for s in steps] == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    assert [s["gradient_norm"] for s in steps] == pytest.approx([norm for _, norm in expected], rel=1e-4)


def test_the_micro_batch_changes_neither_data_nor_losses(smoke, tmp_path: Path) -> None:
    runs = [
        trained(configured(smoke, "method=lora", f"train.micro_batch={size}", *FP32), tmp_path / str(size))
        for size in (1, 4)
    ]
    assert runs[0][0].data_stream_sha256 == runs[1][0].data_stream_sha256
    one, four = ([s["loss"] for s in steps] for _, steps in runs)
    assert one == pytest.approx(four, rel=1e-4)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup"])
def test_the_rate_is_above_0_from_the_first_step_and_then_as_in_transformers(kind: str) -> None:
    def ours(steps: int, warmup_steps: int) -> list[float]:
        how = SimpleNamespace(lr_scheduler_type=kind, get_warmup_steps=lambda steps: warmup_steps)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = train_stage.SftTrainer.create_scheduler(SimpleNamespace(args=how), steps, optimizer)
        rates = []
        for _ in range(steps):
            rates += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
        return rates

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=3, num_training_steps=20).lr_lambdas[0]
    assert ours(20, 3)[:3] == [0.25, 0.5, 0.75]
    assert ours(20, 3)[3:] == pytest.approx([theirs(step) for step in range(3, 20)])
    assert ours(1, 1) == [0.5]
    assert min(ours(2, 1)) > 0


def test_a_run_of_one_step_learns(smoke, tmp_path: Path) -> None:
    config = configured(smoke, "method=lora", "train.max_steps=1", "method.learning_rate=0.01")
    result, (step,) = trained(config, tmp_path / "run")
    assert step["learning_rate"] == 0.005
    assert result.heldout[-1].loss < result.heldout[0].loss


def test_held_out_losses_are_over_so_many_examples_and_the_others_are_counted(smoke, tmp_path: Path) -> None:
    some, every = (
        trained(configured(smoke, "method=lora", f"train.heldout_examples={count}"), tmp_path / count)[0]
        for count in ("1", "null")
    )
    assert (some.heldout_examples, some.heldout_left_out) == (1, 3)
    assert (every.heldout_examples, every.heldout_left_out) == (4, 0)
    assert some.heldout[0].loss != every.heldout[0].loss


@pytest.mark.parametrize(
    ("points", "losses", "steps"),
    [(1, [3, 2, 1, 1.5, 1.2, 1], 3), (2, [3, 2, 2.5, 1.9, 2, 2, 1], 5), (2, [3, 1, 2, 0.9, 1, 0.8, 0.7], 6)],
)
def test_training_stops_behind_so_many_points_without_a_new_lowest_loss(
    smoke, tmp_path: Path, monkeypatch, points: int, losses: list[float], steps: int
) -> None:
    """The first loss is the base's; a point is taken behind each of six steps."""
    told = iter(losses)
    monkeypatch.setattr(train_stage, "heldout_loss", lambda *_, **__: next(told))
    stop = ("method=lora", "train.max_steps=6", "train.heldout_points=6", f"train.early_stopping_points={points}")
    config = configured(smoke, *stop, "train.checkpoint_every_steps=4", "evaluation.points=[0.5,1.0]")
    result, rows = trained(config, tmp_path / "run")
    assert result.steps == len(rows) == steps
    assert [point.loss for point in result.heldout] == losses[: steps + 1]
    assert (artifact_folder(config) / "adapter_model.safetensors").is_file()


def test_a_held_out_loss_shows_how_far_it_is(smoke, tmp_path: Path, monkeypatch) -> None:
    seen = []
    write = Progress._write
    monkeypatch.setattr(Progress, "_write", lambda self: (seen.append(dict(self._content)), write(self)))
    trained(configured(smoke, "method=lora"), tmp_path / "run")
    assert {c["total"] for c in seen if c["phase"] == "heldout"} == {None, 4}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packing_changes_neither_data_nor_losses(smoke, tmp_path: Path, attention: str) -> None:
    settings = ("method=lora", "train.micro_batch=4", f"hardware.attention={attention}", *FP32)
    padded, packed = (
        trained(configured(smoke, f"train.packing={packing}", *settings), tmp_path / packing)
        for packing in ("false", "true")
    )
    assert padded[0].data_stream_sha256 == packed[0].data_stream_sha256
    assert [s["loss"] for s in packed[1]] == pytest.approx([s["loss"] for s in padded[1]], rel=1e-4)
    assert packed[0].positions == packed[0].tokens == padded[0].tokens <= padded[0].positions


def test_the_same_seed_gives_the_same_run(smoke, tmp_path: Path) -> None:
    config = configured(smoke, "method=lora")
    first, again = (trained(config, tmp_path / name)[1] for name in ("a", "b"))
    assert [s["loss"] for s in first] == [s["loss"] for s in again]
    other = configured(smoke, "method=lora", "seed=1")
    assert [s["loss"] for s in trained(other, tmp_path / "c")[1]] != [s["loss"] for s in first]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile imports torch's own deprecated parts
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_compiled_layers_train_and_evaluate_as_eager_ones(smoke, tmp_path: Path, method: str) -> None:
    overrides = (f"method={method}", "train.max_steps=3", "train.batch_size=4", "train.micro_batch=2")
    eager, eager_steps = trained(configured(smoke, *overrides), tmp_path / "eager")
    compiled, steps = trained(configured(smoke, *overrides, "train.compile=regional"), tmp_path / "compiled")
    assert compiled.environment.compiled == "regional"
    assert torch._dynamo.config.optimize_ddp is False
    assert eager.environment.compiled == "off"
    assert [s["loss"] for s in steps] == pytest.approx([s["loss"] for s in eager_steps], rel=0.02)
    assert compiled.heldout[-1].loss == pytest.approx(eager.heldout[-1].loss, rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiled_layers_do_not_keep_dequantized_weights(smoke, tmp_path: Path) -> None:
    config = configured(smoke, "method=qlora", "hardware.compute_dtype=bfloat16")
    prepare_stage.run(Context(tmp_path, config, Progress(tmp_path, "prepare")))
    source = models.locate(config.model, Path(config.paths.cache))
    base = methods.load_base(config, source, "cpu", torch.bfloat16)
    shapes = {tuple(m.weight.quant_state.shape) for m in base.modules() if hasattr(m, "quant_state")}
    model = methods.make_trainable(base, config.method, seed=0)
    kept: list[tuple[int, ...]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    compile_layers(model)
    batch = data.collate([data.load_prepared(data_folder(config)).train[0]], pad_id=0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    assert shapes  # the layers are quantized
    assert kept  # and the compiled graph saves something for the backward
    assert not shapes & {*kept, *(shape[::-1] for shape in kept)}


def test_speed_counts_timed_steps_only(smoke, tmp_path: Path) -> None:
    result, steps = trained(configured(smoke, "method=lora", "train.untimed_steps=2"), tmp_path / "run")
    timed = [s for s in steps if s["timed"]]
    assert (result.timed_steps, len(timed)) == (2, 2)
    rate = sum(s["tokens"] for s in timed) / sum(s["seconds"] for s in timed)
    assert result.train_tokens_per_second == pytest.approx(rate)
    assert result.spans_seconds["train_steps"] == pytest.approx(sum(s["seconds"] for s in steps))
    assert result.tokens == sum(s["tokens"] for s in steps)


def test_the_time_line_of_memory_ends_at_the_peak_of_training(smoke, tmp_path: Path) -> None:
    result, steps = trained(configured(smoke, "method=lora", "train.heldout_points=2"), tmp_path / "run")
    (peak,) = [phase.peak_bytes for phase in result.memory if phase.phase == "train"]
    line = [step["peak_so_far_bytes"] for step in steps]
    assert line == sorted(line)  # over a held-out evaluation too
    assert line[-1] == pytest.approx(peak, rel=0.01)
    assert all(0 < step["memory_bytes"] <= 1.01 * step["peak_so_far_bytes"] for step in steps)


def test_weights_are_written_with_their_checksums(smoke, tmp_path: Path) -> None:
    config = configured(smoke, "method=full")
    result, _ = trained(config, tmp_path / "run")
    weights = artifact_folder(config)
    assert set(result.weights) == {"model.safetensors", "config.json", "generation_config.json"}
    assert damaged(weights, result.weights, None) == []
    assert result.checkpoint_bytes == sum(f.stat().st_size for f in weights.glob("*.safetensors"))
    assert result.checkpoint_bytes == pytest.approx(2 * result.parameters_total, rel=0.05)
    assert dataclasses.is_dataclass(result)


def test_a_step_in_which_the_compiler_works_is_not_timed(smoke, tmp_path: Path, monkeypatch) -> None:
    graphs = iter([0, 0, 0, 0, 1, 1, 1])  # the first step is warm-up; then before and after each: one more in the third
    monkeypatch.setattr("bench.worker.observe.graphs_compiled", lambda: next(graphs))
    result, steps = trained(configured(smoke, "method=lora"), tmp_path / "run")
    assert [step["timed"] for step in steps] == [False, True, False, True]
    assert result.timed_steps == 2


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("compiled", ["off", "regional"])
def test_training_on_a_gpu(smoke, tmp_path: Path, method: str, compiled: str) -> None:
    """Compiled with checkpointing, as `train=gpu` is; lengths are padded on CUDA in any case."""
    checkpointing = f"train.gradient_checkpointing={'true' if compiled == 'regional' else 'false'}"
    settings = (f"method={method}", "hardware.device=cuda", f"train.compile={compiled}", checkpointing)
    result, steps = trained(configured(smoke, *settings), tmp_path / "run")
    assert result.environment.compiled == compiled
    assert result.environment.device.startswith("cuda")
    assert result.environment.compute_dtype == "bfloat16"
    assert all(s["loss"] is not None for s in steps)
    peak = {m.phase: m for m in result.memory}["train"]
    assert peak.peak_bytes >= result.breakdown.weights_bytes
