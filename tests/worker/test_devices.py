"""Two processes train as one does: the same examples in every step, the same losses, the same weights.

On the CPU, over gloo, in fp32. What NCCL, CUDA and DeepSpeed do was not run here (docs/gpu.md).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import artifact_folder
from bench.record import TrainResult, from_json, to_json
from bench.worker import prepare as prepare_stage
from bench.worker import train as train_stage
from bench.worker.main import Context, Progress

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "train_together.py"
# 13 examples in steps of 4: in the last step one process has nothing to do. 3 held-out ones: likewise.
SETTINGS = ("hardware.compute_dtype=float32", "task.train_examples=13", "task.validation_examples=3",
            "train.batch_size=4", "train.micro_batch=1", "train.max_steps=4", "train.heldout_points=2")  # fmt: skip
CASES = {
    "full-ddp": ("method=full", "hardware.strategy=ddp"),
    "lora-ddp": ("method=lora", "hardware.strategy=ddp"),
    "qlora-ddp": ("method=qlora", "hardware.strategy=ddp"),
    "packed-ddp": ("method=lora", "hardware.strategy=ddp", "train.packing=true", "train.micro_batch=2"),
    "full-fsdp": ("method=full", "hardware.strategy=fsdp"),
    "lora-fsdp": ("method=lora", "hardware.strategy=fsdp"),
    "qlora-fsdp": ("method=qlora", "hardware.strategy=fsdp"),
    "qlora-bf16-fsdp": ("method=qlora", "hardware.strategy=fsdp", "hardware.compute_dtype=bfloat16"),
    "checkpointed-fsdp": ("method=full", "hardware.strategy=fsdp", "train.gradient_checkpointing=true"),
}
LOSS = dict.fromkeys(CASES, 1e-5) | {"qlora-bf16-fsdp": 2e-3}  # nats: autocast rounds to 8 bits


class Run:
    """One finished training stage: its result, its steps and what it saved."""

    def __init__(self, config: RunConfig, folder: Path):
        self.config = config
        self.result = from_json(TrainResult, (folder / "train.json").read_bytes())
        self.steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        self.weights = load_file(next(artifact_folder(config).glob("*.safetensors")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Run]]:
    """case -> (by one process, by two), of all cases at once."""
    root = tmp_path_factory.mktemp("devices")
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(8) for b in range(5)]
    (root / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    alone = {case: _planned(root, case, "hardware.strategy=none") for case in CASES}
    together = {case: _planned(root, case, "hardware.devices=2") for case in CASES}
    for config, folder in alone.values():
        context = Context(folder, config, Progress(folder, "train"))
        prepare_stage.run(context)
        (folder / "train.json").write_text(to_json(train_stage.run(context)))
    for config, folder in together.values():
        prepare_stage.run(Context(folder, config, Progress(folder, "prepare")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    folders = [str(folder) for _, folder in together.values()]
    there = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([*launcher, *folders], env=there, capture_output=True, text=True, timeout=300, check=False)
    errors = [path.read_text() for path in sorted(root.glob("together/*/error.*.txt"))]
    assert ended.returncode == 0, ended.stderr
    assert errors == [], "\n".join(errors)
    return {case: (Run(*alone[case]), Run(*together[case])) for case in CASES}


def _planned(root: Path, case: str, *overrides: str) -> tuple[RunConfig, Path]:
    kind = "together" if "hardware.devices=2" in overrides else "alone"
    task = (
        "experiment=smoke", "task=jsonl", f"task.train_file={root / 'sums.jsonl'}", "task.prompt={question}",
        "task.target={answer}", "task.test_examples=4", "task.max_new_tokens=8", f"paths.cache={root / 'cache'}",
        f"paths.artifacts={root / 'artifacts' / case}",
    )  # fmt: skip
    settings = dict(text.split("=", 1) for text in (*task, *SETTINGS, *CASES[case], *overrides))
    (config,) = compose([f"{key}={value}" for key, value in settings.items()], multirun=False)
    folder = root / kind / case
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(to_json(config))
    return config, folder


def test_two_processes_train_as_one_does(runs: dict[str, tuple[Run, Run]]) -> None:
    """One test, so that parallel workers do not each start the processes."""
    assert runs.keys() == CASES.keys()
    for case, (one, two) in runs.items():
        print(case)  # shown when it fails
        lose_alike(one, two, apart=LOSS[case])
        consume_alike(one, two)
        save_alike(one, two)
        tell_of_each_device(one.result, two.result, case)


def lose_alike(one: Run, two: Run, apart: float) -> None:
    assert [s["loss"] for s in two.steps] == pytest.approx([s["loss"] for s in one.steps], abs=apart)
    norms = [[step["gradient_norm"] for step in run.steps] for run in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=10 * apart)
    assert [s["learning_rate"] for s in two.steps] == [s["learning_rate"] for s in one.steps]
    assert [p.loss for p in two.result.heldout] == pytest.approx([p.loss for p in one.result.heldout], abs=apart)


def consume_alike(one: Run, two: Run) -> None:
    assert two.result.data_stream_sha256 == one.result.data_stream_sha256
    counts = ("steps", "examples", "tokens", "supervised_tokens", "positions", "timed_steps",
              "parameters_total", "parameters_trainable", "parameters_quantized")  # fmt: skip
    assert {n: getattr(two.result, n) for n in counts} == {n: getattr(one.result, n) for n in counts}
    for name in ("tokens", "supervised_tokens", "positions"):
        assert [step[name] for step in two.steps] == [step[name] for step in one.steps]


def save_alike(one: Run, two: Run) -> None:
    assert two.weights.keys() == one.weights.keys()
    assert two.result.checkpoint_bytes == one.result.checkpoint_bytes
    for name, weight in one.weights.items():
        assert two.weights[name].dtype is weight.dtype
        torch.testing.assert_close(two.weights[name], weight, rtol=2**-7, atol=1e-5)


def tell_of_each_device(one: TrainResult, two: TrainResult, case: str) -> None:
    assert (one.devices, one.strategy, one.per_device) == (1, "none", [])
    assert (two.devices, two.strategy) == (2, case.rpartition("-")[2])
    assert [share.rank for share in two.per_device] == [0, 1]
    assert sum(share.tokens_per_second for share in two.per_device) == pytest.approx(two.train_tokens_per_second)
    peak = {phase.phase: phase.peak_bytes for phase in two.memory}["train"]
    assert sum(share.peak_bytes for share in two.per_device) == peak
    weights = [share.breakdown.weights_bytes for share in two.per_device]
    assert sum(weights) == two.breakdown.weights_bytes
    if two.strategy == "ddp":
        assert weights == [one.breakdown.weights_bytes] * 2
    elif case.startswith("qlora"):
        assert one.breakdown.weights_bytes < sum(weights) < 1.2 * one.breakdown.weights_bytes  # constants stay whole
    else:
        assert sum(weights) == pytest.approx(one.breakdown.weights_bytes, rel=0.02)  # parts are padded
