"""Runs on the tiny random model in folders of their own, with a fault put into their child processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import run_folder
from bench.record import Record, from_json, to_json

ROOT = Path(__file__).parents[2]
SHIM = Path(__file__).parent / "shim"
EXECUTE = (
    "import sys; from pathlib import Path; from bench.sweep.execute import execute; from bench.config import "
    "RunConfig; from bench.record import from_json; execute(from_json(RunConfig, Path(sys.argv[1]).read_bytes()))"
)
PLACES = {
    "start": "bench.worker.main:refuse_changed_inputs",
    "load": "bench.worker.models:load_weights",
    "forward": "transformers.models.llama.modeling_llama:LlamaModel.forward",
    "backward": "accelerate:Accelerator.backward",
    "optimizer": "torch.optim.adam:Adam._init_group",
    "save": "bench.worker.methods:save_trained",
    "generate": "transformers.generation.utils:GenerationMixin.generate",
}
_composing = threading.Lock()
# A short pass when the model is there, two for the held-out loss before the first step, and each step two more.
FIRST_TRAINING_FORWARD, SECOND_STEP_FORWARD = 4, 6


@dataclass(frozen=True)
class Fault:
    """What happens (a deed of `shim/sitecustomize.py`), where, at which call, with what, and in which process."""

    deed: str
    place: str = "generate"
    call: int = 1
    using: str = ""
    rank: int = 0

    def environment(self) -> dict[str, str]:
        named = {"FAULT": self.deed, "FAULT_PLACE": PLACES[self.place], "FAULT_CALL": str(self.call)}
        more = {"FAULT_WITH": self.using, "FAULT_RANK": str(self.rank), "PYTHONPATH": str(SHIM)}
        return {**environment(None), **named, **more}


@dataclass(frozen=True)
class Place:
    """A folder with the results, weights and cache of a few runs."""

    base: Path
    task_file: Path

    def overrides(self, *extra: str) -> list[str]:
        return [
            "experiment=smoke",
            "task=jsonl",
            f"task.train_file={self.task_file}",
            "task.prompt={question}",
            "task.target={answer}",
            "task.metrics=[numeric,exact_match]",
            "task.max_new_tokens=8",
            "task.validation_examples=4",
            "task.test_examples=4",
            "hardware.threads=1",
            "hardware.device=cpu",
            *(f"paths.{name}={self.base / name}" for name in ("results", "artifacts", "cache")),
            *extra,
        ]

    def config(self, *extra: str) -> RunConfig:
        with _composing:  # Hydra keeps global state
            (config,) = compose(self.overrides(*extra), multirun=False)
        return config

    def folder(self, *extra: str) -> Path:
        return run_folder(self.config(*extra))

    def record(self, *extra: str) -> Record:
        return from_json(Record, (self.folder(*extra) / "record.json").read_bytes())

    def copy(self, base: Path, *, without: tuple[str, ...] = ()) -> Place:
        """The same results, weights and cache elsewhere; files named in `without` are left out."""
        for name in ("results", "artifacts", "cache"):
            shutil.copytree(self.base / name, base / name, ignore=shutil.ignore_patterns(*without))
        return replace(self, base=base)

    def execute(self, *extra: str, fault: Fault | None = None, before: tuple[str, ...] = ()) -> Record:
        """Run what is missing of one run, in a process of its own; `before` is put before its command."""
        plan = self.base / "plan.json"
        plan.write_text(to_json(self.config(*extra)))
        command = [*before, sys.executable, "-c", EXECUTE, str(plan)]
        done = subprocess.run(command, cwd=ROOT, env=environment(fault), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.record(*extra)

    def sweep(self, *extra: str) -> list[str]:
        """The command line of a sweep."""
        return [sys.executable, "-m", "bench", "-m", *self.overrides(*extra)]


def after_training(finished: Place, base: Path) -> Place:
    """A copy in which the LoRA run has its weights and train.json, and nothing that comes later."""
    return finished.copy(base, without=("record.json", "evaluate.json", "samples.jsonl.gz"))


def environment(fault: Fault | None) -> dict[str, str]:
    """Nothing is compiled in these runs, and the compiler's own import takes a fifth of a child's life."""
    return fault.environment() if fault else os.environ | {"TORCHDYNAMO_DISABLE": "1"}


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of a finished run's files."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


def cut_short(path: Path) -> None:
    """Leave the first half of a file, as a lost machine may."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def steps_written(folder: Path) -> int:
    """Whole lines of steps.jsonl."""
    return len([json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()])


def how(record: Record) -> str:
    """A record's end, for the fault table."""
    failure = record.failure
    return f"`{record.status}`, {failure.stage}: {failure.phase}" if failure else f"`{record.status}`"
