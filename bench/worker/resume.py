"""Training that survives being stopped: it leaves checkpoints and goes on from the last whole one when run again.

`transformers.Trainer` writes a checkpoint: what is trained, optimizer, schedule and random numbers. The instruments'
readings are written beside them last, so `seen.json` marks the checkpoint as whole:

    artifacts/<sweep>/<run_id>/trainer/checkpoint-40/model.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, ...
    artifacts/<sweep>/<run_id>/trainer/checkpoint-40/seen.json

A resumed run ends as one that was never stopped. The examples of the finished steps are counted and hashed again; if
the hash differs, the data changed, and training starts anew. SIGTERM, by which schedulers announce that they take a
machine back, is answered with a checkpoint at the end of the present step.

    >>> keeper = Keeper(artifacts / "trainer", config, resolved, observer)
    >>> keeper.train(trainer)
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from bench.config import RunConfig
from bench.identity import checksums, damaged, data_folder, flush_to_disk, write_atomic
from bench.record import HeldoutPoint, PhaseMemory, Step, from_json, to_json
from bench.worker import data
from bench.worker.device import Device
from bench.worker.instruments.clock import OtherLoad
from bench.worker.instruments.tokens import TokenStream
from bench.worker.observe import Observer

FOLDER = "trainer"  # in the run's artifact folder
POINTS = "points"  # beside it: weights kept along training, by step
_MARK = "seen.json"
_MADE_BY = ("device", "device_count", "threads", "compute_dtype", "attention", "compiled", "torch")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", ser_json_inf_nan="null"))
class Seen:
    """The instruments' readings when a checkpoint was written."""

    step: int
    made_by: dict[str, str]
    files: dict[str, str]  # name -> SHA-256
    data_stream_sha256: str
    steps: list[Step]
    heldout: list[HeldoutPoint]
    memory: list[PhaseMemory]
    energy_wh: dict[str, float | None]
    resumed_at_steps: list[int]


class Keeper(TrainerCallback):
    """Marks checkpoints as whole, resumes from the last one, and stops behind one when the process is asked to end."""

    def __init__(self, folder: Path, config: RunConfig, device: Device, observer: Observer, model: Any):
        self._folder, self._made_by, self._observer = folder, made_by(config, device, model), observer
        self._asked_to_end = self._stops = False

    def train(self, trainer: Any) -> None:
        """Train from the last whole checkpoint, else from the start.

        Ends the process by SIGTERM, behind a checkpoint, when one came before the last step.

        Args:
            trainer: a `Trainer` with `micro_batches(steps)`: what the first optimizer steps consume.
        """
        self._observer.progress.checkpoint_step = 0
        found = self._go_on(trainer)
        with self._listening():
            trainer.train(resume_from_checkpoint=str(found) if found else None)
        if self._stops:
            self._observer.progress.phase("checkpoint")
            print(f"Asked to end: checkpoint written behind step {len(self._observer.steps)}.", flush=True)
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        state.save_steps = args.save_steps  # the checkpoint's own would count on

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Called after each step, when the observer has measured it."""
        if self._stops:
            return
        ends = control.should_training_stop  # what follows is the weights themselves
        self._stops = self._asked_to_end and not ends
        if ends:
            control.should_save = False
        if self._stops:
            control.should_save = control.should_training_stop = True

    def written(self, step: int) -> None:
        """Mark the checkpoint that the trainer has just written; only then is the one before it deleted."""
        observer, folder = self._observer, self._folder / f"checkpoint-{step}"
        seen = Seen(
            step=step,
            made_by=self._made_by,
            files={name: sha for name, sha in checksums(folder).items() if name != _MARK},
            data_stream_sha256=observer.tokens.hexdigest(),
            steps=observer.steps,
            heldout=observer.heldout,
            memory=list(observer.memory.read().values()),
            energy_wh=observer.energy.read(),
            resumed_at_steps=observer.resumed_at_steps,
        )
        flush_to_disk(folder)
        write_atomic(folder / _MARK, to_json(seen))
        rotate_checkpoints(str(folder.parent), save_total_limit=1)
        observer.progress.checkpoint_step = step

    def _go_on(self, trainer: Any) -> Path | None:
        """Set the instruments to what they had read at the last whole checkpoint, and return it; None: there is none.

        All other checkpoints are deleted, so that none of them is ever taken for a later one.
        """
        found, stream, observer = _last_whole(self._folder, self._made_by), TokenStream(), self._observer
        if found is not None:
            consume(stream, trainer, found[1].step)
            if stream.hexdigest() != found[1].data_stream_sha256:
                print(f"{found[0].name} is not used: the training data are no longer those that it was trained on")
                found = None
        for path in self._folder.glob("checkpoint-*"):
            if found is None or path != found[0]:
                shutil.rmtree(path)
        if found is None:
            return None
        folder, seen = found
        print(f"Goes on from {folder.name}.")
        observer.progress.checkpoint_step = seen.step
        observer.go_on(stream, seen.steps, seen.heldout, seen.resumed_at_steps)
        observer.memory.recall(seen.memory)
        observer.energy.recall(seen.energy_wh)
        return folder

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Let SIGTERM be a request, to be answered at the end of the step."""

        def ask(*_: Any) -> None:
            self._asked_to_end = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def made_by(config: RunConfig, device: Device, model: Any) -> dict[str, str]:
    """Facts that decide numbers and speed, the base's content or hub commit too: a run goes on only if they stay."""
    environment = device.environment(OtherLoad())
    facts = {name: str(getattr(environment, name)) for name in _MADE_BY}
    base = config.content.weights or getattr(model.config, "_commit_hash", None)
    facts |= {"base": str(base), "prepared data": data_folder(config).name}
    return facts | {"micro_batch": str(config.train.micro_batch), "transformers": transformers.__version__}


def consume(stream: TokenStream, trainer: Any, steps: int) -> None:
    """Hash and count the examples of the first steps as training did."""
    stream.enter("untimed")
    for batch in trainer.micro_batches(steps):
        for part in data.unpack(batch):
            stream.consume(part["input_ids"], part["labels"], part["attention_mask"])


def delete_older_weights(folder: Path) -> None:
    """Delete everything in a run's artifact folder but the checkpoints and the points of this training."""
    for path in folder.glob("*"):
        if path.is_file():
            path.unlink()
        elif path.name not in (FOLDER, POINTS):
            shutil.rmtree(path)


def _last_whole(folder: Path, now: Mapping[str, str]) -> tuple[Path, Seen] | None:
    """The newest checkpoint that can be gone on from; the log says why newer ones cannot. None: start anew."""
    steps = {int(p.name.partition("-")[2]): p for p in folder.glob("checkpoint-*") if p.name[11:].isdigit()}
    for _, path in sorted(steps.items(), reverse=True):
        try:
            seen = from_json(Seen, (path / _MARK).read_bytes())
        except (FileNotFoundError, ValidationError):
            trouble = "it was not written to its end"
        else:
            torn = damaged(path, seen.files, None)
            then = seen.made_by
            changed = [f"{k} {then.get(k)}, now {now.get(k)}" for k in {**then, **now} if then.get(k) != now.get(k)]
            if not torn and not changed:
                return path, seen
            trouble = f"torn: {', '.join(torn)}" if torn else f"it was written with {'; '.join(changed)}"
        print(f"{path.name} is not used: {trouble}")
    return None
