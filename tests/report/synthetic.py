"""A made-up sweep folder: base, full, lora and qlora with two seeds, one failed run, all numbers invented.

The figures are plausible so that tables and plots can be looked at, and say "synthetic" wherever a person reads
them. One prediction holds a script tag that must reach the report as text.

    >>> build_sweep(tmp_path / "synthetic")
"""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.compose import Trial, Tuning, with_settings
from bench.config import RunConfig
from bench.identity import tuning_key
from bench.outcome import NEXT_STEP, Failure, Status
from bench.record import (
    DataSummary,
    Environment,
    EvaluateResult,
    HeldoutPoint,
    MemoryBreakdown,
    PhaseMemory,
    Record,
    RegressionItem,
    RegressionResult,
    RegressionTask,
    Sample,
    Step,
    TrainResult,
    to_json,
)
from bench.stats.rates import best, edge

MIB = 2**20
ATTACK = "</script><img src=x onerror='window.harmed=1'><script>window.harmed=1</script>"
SCRIPT = ATTACK
STEPS, EXAMPLES, ITEMS = 32, 48, 60
TASKS = {"capitals": 0.86, "continents": 0.60, "addition": 0.44, "grammar_agreement": 0.90}
# quality, held-out loss after, peak MiB, tokens/s, weights/gradients/optimizer MiB, trainable, checkpoint, harm
METHODS: dict[str, dict[str, Any]] = {
    "base": {"quality": 0.17},
    "full": {"quality": 0.300, "loss": 2.55, "peak": 4397, "speed": 505, "parts": (513, 513, 1026),
             "trainable": 134_515_008, "checkpoint": 513 * MIB, "harm": 0.06, "rate": 5e-5},
    "lora": {"quality": 0.295, "loss": 2.60, "peak": 2552, "speed": 600, "parts": (275, 19, 38),
             "trainable": 4_884_480, "checkpoint": 19 * MIB, "harm": 0.01, "rate": 5e-4},
    "qlora": {"quality": 0.288, "loss": 2.63, "peak": 2375, "speed": 540, "parts": (117, 19, 38),
              "trainable": 4_884_480, "checkpoint": 19 * MIB, "harm": 0.02, "rate": 5e-4},
}  # fmt: skip
ENVIRONMENT = Environment("cpu: synthetic", 1, 2, "bfloat16", "sdpa", "regional", "2.13.0", 0.4)


def build_sweep(folder: Path, *, failed: bool = True) -> Path:
    """Write the sweep's run folders; the last seed of an extra method `full_bf16` fails when `failed`."""
    for method in METHODS:
        for seed in (0,) if method == "base" else (0, 1):
            steps = [] if method == "base" else make_steps(method, seed)
            write_run(folder, make_record(method, seed), steps, make_samples(method, seed), make_items(method, seed))
    if failed:
        write_run(folder, make_failure("full_bf16", 0), make_steps("full", 0)[:3], [], [])
    return folder


def write_run(
    folder: Path, record: Record, steps: list[Step], samples: list[Sample], items: list[RegressionItem]
) -> Path:
    """One run folder as the harness writes it."""
    run = folder / record.run_id
    run.mkdir(parents=True)
    (run / "steps.jsonl").write_text("".join(_line(step) for step in steps))
    for name, rows in (("samples", samples), ("regression_items", items)):
        (run / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(_line(row) for row in rows).encode()))
    (run / "record.json").write_text(to_json(record))
    return run


def _line(value: Any) -> str:
    return json.dumps(json.loads(to_json(value))) + "\n"


def make_config(method: str, seed: int) -> RunConfig:
    """The settings; those that the analysis does not read are defaults."""
    adapter = {"rank": 16, "alpha": 32, "target_modules": "all-linear"} if "lora" in method else None
    trains = {"base": "nothing", "lora": "adapter", "qlora": "adapter"}.get(method, "all_weights")
    return RunConfig(**{
        "model": {"name": "synthetic-135m", "source": "random", "max_context": 2048},
        "method": {
            "name": method,
            "trains": trains,
            "weights_dtype": "float32" if trains == "all_weights" else "bfloat16",
            "quantization": {"scheme": "nf4", "double_quantization": True} if method == "qlora" else None,
            "adapter": adapter,
            "learning_rate": METHODS.get(method, {}).get("rate"),
            "optimizer": "adamw",
        },
        "task": {"name": "docstrings", "source": "docstrings", "metrics": ["rougeL", "exact_match"]},
        "suite": {"name": "quick", "source": "quick"},
        "train": {"batch_size": 16, "micro_batch": 8, "epochs": 1, "schedule": "cosine", "max_length": 1024},
        "hardware": {"name": "cpu", "device": "cpu"},
        "tracking": {"name": "none"},
        "seed": seed,
        "sweep": "synthetic",
    })  # fmt: skip


def make_record(method: str, seed: int) -> Record:
    """A finished run."""
    trained = method != "base"
    samples, items = make_samples(method, seed), make_items(method, seed)
    scores = {name: float(np.mean([s.scores[name] for s in samples])) for name in ("rougeL", "exact_match")}
    tokens = sum(s.loss_tokens for s in samples)
    return Record(
        run_id=f"{method}-synthetic-135m-docstrings-{f's{seed}' if trained else 's-'}-0000000{seed}",
        comparison_key="5ca1ab1e0000",
        sweep="synthetic",
        method=method,
        model="synthetic-135m",
        task="docstrings",
        suite="quick",
        seed=seed,
        status=Status.OK,
        config=make_config(method, seed),
        provenance={"packages": {"torch": "2.13.0", "peft": "0.21.2"}, "git_commit": "synthetic", "git_dirty": False,
                    "command": f"python -m bench method={method} seed={seed}", "processor": "synthetic", "cores": 2,
                    "memory_bytes": 24 * 2**30},
        started_at=f"2026-01-01T00:0{seed}:00Z",
        wall_seconds=400.0 + 10 * seed if trained else 120.0,
        data=DataSummary("f" * 64, 512, 64, EXAMPLES, {"too long": 3}, 140.0, 700, "synthetic"),
        train=make_train(method, seed) if trained else None,
        evaluate=EvaluateResult(
            EXAMPLES, scores, sum(s.loss or 0.0 for s in samples) / tokens, tokens, 2400, 150.0, 2,
            [PhaseMemory("load", 900 * MIB, 300 * MIB), PhaseMemory("evaluate", 1500 * MIB, 900 * MIB)],
            {"load": 1.0, "heldout": 4.0, "generate": 50.0, "score": 2.0}, ENVIRONMENT,
        ),
        regression=RegressionResult(
            "quick",
            [_task(name, [i.score for i in items if i.task == name]) for name in TASKS] + [_bits(items)],
            [PhaseMemory("regression", 1400 * MIB, 800 * MIB)], {"load": 1.0, "regression": 30.0}, ENVIRONMENT,
        ),
        stage_wall_seconds={"train": 250.0, "evaluate": 70.0, "regression": 45.0} if trained else {"evaluate": 70.0},
    )  # fmt: skip


def with_rate(record: Record, learning_rate: float) -> Record:
    """The same run as if made with another learning rate."""
    return replace(record, config=with_settings(record.config, {"method.learning_rate": learning_rate}))


def make_tuning(record: Record, trials: list[Trial]) -> Tuning:
    """A search that holds for a run."""
    winner = best(trials)
    return Tuning(
        tuning_key(record.config), record.method, record.model, record.task,
        winner.learning_rate if winner else None, edge(trials) if winner else None, trials, 1000, None,
        record.data.fingerprint if record.data else None,
        "python -m bench tune", "synthetic", False, "2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def make_failure(method: str, seed: int) -> Record:
    """A run that ran out of memory in training."""
    finished = make_record("full", seed)
    failure = Failure("train", "train", "out of memory (synthetic)", NEXT_STEP[Status.OOM], 3,
                      "Traceback ...\nMemoryError: synthetic <b>log</b>", 5000 * MIB)  # fmt: skip
    return replace(
        finished,
        run_id=finished.run_id.replace("full", method, 1),
        method=method,
        config=make_config(method, seed),
        status=Status.OOM,
        train=None,
        evaluate=None,
        regression=None,
        failure=failure,
        wall_seconds=61.0,
    )


def make_train(method: str, seed: int) -> TrainResult:
    """The training stage with numbers from `METHODS`."""
    facts = METHODS[method]
    steps = make_steps(method, seed)
    seconds = steps[-1].elapsed_seconds
    points = [(0, 3.60), (8, 2.9), (16, (2.9 + facts["loss"]) / 2), (STEPS, facts["loss"] + 0.01 * seed)]
    parts = [part * MIB for part in facts["parts"]]
    peak = (facts["peak"] + 8 * seed) * MIB
    return TrainResult(
        f"{seed}d" * 32, STEPS, 512, 2240 * STEPS, 480 * STEPS, 2600 * STEPS, STEPS - 3,
        facts["speed"] + 4.0 * seed, facts["speed"] * 0.21, facts["speed"] * 1.16,
        2240 / facts["speed"], 2500 / facts["speed"], 2800 / facts["speed"], seconds, 30.0,
        [HeldoutPoint(step, 2240 * step, seconds * step / STEPS, loss) for step, loss in points],
        134_515_008 + (0 if method == "full" else facts["trainable"]), facts["trainable"], "float32",
        facts["checkpoint"], "float32",
        [PhaseMemory("load", 900 * MIB, 300 * MIB), PhaseMemory("train", peak, peak - 600 * MIB)],
        MemoryBreakdown(*parts), {"import": 8.0, "load": 2.0, "train_steps": seconds, "heldout": 12.0, "save": 0.4},
        ENVIRONMENT,
        step_memory=[
            PhaseMemory(part, peak - less * MIB, None)
            for part, less in (("forward", 205), ("backward", 0), ("optimizer", 1005))
        ],
    )  # fmt: skip


def make_steps(method: str, seed: int) -> list[Step]:
    """A falling, noisy loss."""
    facts = METHODS[method]
    rng = np.random.default_rng(seed)  # the same noise for all methods: the same batches
    seconds = 2240 / facts["speed"]
    return [
        Step(n, 3.6 - (3.5 - facts["loss"]) * (1 - math.exp(-n / 9)) + float(rng.normal(0, 0.08)), 1.1, 1e-4, seconds,
             2240, 480, 2600, n * seconds, n > 3, (facts["peak"] - 1500) * MIB, (facts["peak"] - 300 // n) * MIB)
        for n in range(1, STEPS + 1)
    ]  # fmt: skip


def make_samples(method: str, seed: int) -> list[Sample]:
    """Predictions whose scores share each example's difficulty, so that pairing helps as it does in truth."""
    difficulty = np.random.default_rng(99).normal(0, 0.12, EXAMPLES)
    rng = np.random.default_rng([seed, *method.encode()])
    quality = METHODS[method]["quality"] + 0.004 * seed
    return [_sample(place, method, quality + difficulty[place] + rng.normal(0, 0.03), rng) for place in range(EXAMPLES)]


def _sample(place: int, method: str, rouge: float, rng: np.random.Generator) -> Sample:
    if place == 0:  # the example on which the methods disagree most, so that the report shows it
        rouge = 0.0 if method == "base" else 0.9
    prediction = SCRIPT + " ```" if place == 0 else f"{method}: synthetic answer {place} | with a bar"
    prompt = f"Synthetic prompt {place}. " + "def f(x): return x\n" * 40
    tokens = 10 + place % 7
    loss = tokens * (METHODS[method].get("loss", 3.6) + float(rng.normal(0, 0.2)))
    scores = {"rougeL": float(np.clip(rouge, 0, 1)), "exact_match": float(rouge > 0.45)}
    return Sample(f"example-{place}", prompt, f"Reference {place}.", prediction, scores, loss, tokens, place == 3)


def make_items(method: str, seed: int) -> list[RegressionItem]:
    """Right/wrong items that flip from the base with the method's harm, and documents with bits per byte."""
    ability = np.random.default_rng(7).random((len(TASKS), ITEMS))
    rng = np.random.default_rng([seed, *method.encode()])
    harm = METHODS[method].get("harm", 0.0)
    items = [
        RegressionItem(task, f"{task}-{n}", "acc", float(ability[t, n] + rng.normal(0, 0.02) < level - harm))
        for t, (task, level) in enumerate(TASKS.items())
        for n in range(ITEMS)
    ]
    documents = [
        RegressionItem("prose", f"prose-{n}", "bits_per_byte", 1.1 + 0.01 * n + 0.3 * harm, 1000.0 + n)
        for n in range(20)
    ]
    return items + documents


def _task(name: str, scores: list[float]) -> RegressionTask:
    return RegressionTask(name, "acc", float(np.mean(scores)), len(scores), True, 0.25)


def _bits(items: list[RegressionItem]) -> RegressionTask:
    rows = [item for item in items if item.task == "prose"]
    value = sum(i.score * i.weight for i in rows) / sum(i.weight for i in rows)
    return RegressionTask("prose", "bits_per_byte", value, len(rows), False)
