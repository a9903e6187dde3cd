"""Training that survives being stopped: it leaves checkpoints, and goes on from the last one when it is run again.

A resumed run ends as one that was never stopped: weights, optimizer, schedule and random numbers are those of the
checkpoint, and the examples of the steps that are done are counted and hashed again, in the order of now; where the
hash is another than it was, the data changed, and training starts anew.

SIGTERM, by which schedulers announce that they take a machine back, is answered with a checkpoint at the end of the
present step.

    >>> keeper = Keeper(artifacts / "trainer", config, resolved, observer, memory, energy)
    >>> keeper.train(trainer)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from bench.config import RunConfig
from bench.worker import checkpoints, data
from bench.worker.checkpoints import Checkpoint, Seen
from bench.worker.device import Device
from bench.worker.instruments.energy import Energy
from bench.worker.instruments.memory import Memory
from bench.worker.instruments.tokens import TokenStream
from bench.worker.observer import Observer

if TYPE_CHECKING:
    from bench.worker.train import SftTrainer


class Keeper(TrainerCallback):
    """Marks checkpoints as whole, resumes from the last one, and stops behind one when the process is asked to end."""

    def __init__(
        self, folder: Path, config: RunConfig, device: Device, observer: Observer, memory: Memory, energy: Energy
    ):
        self._folder, self._made_by = folder, checkpoints.made_by(config, device)
        self._observer, self._memory, self._energy = observer, memory, energy
        self._asked_to_end = self._stops = False

    def train(self, trainer: SftTrainer) -> None:
        """Train from the last whole checkpoint, else from the start.

        Ends the process by SIGTERM, behind a checkpoint, when one came before the last step.
        """
        self._observer.progress.checkpoint_step = 0
        found = self._go_on(trainer)
        with self._listening():
            trainer.train(resume_from_checkpoint=str(found.folder) if found else None)
        if self._stops:
            self._observer.progress.phase("checkpoint")
            print(f"Asked to end: checkpoint written behind step {len(self._observer.steps)}.", flush=True)
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        state.save_steps = args.save_steps  # the checkpoint's own would count on

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """After each step, when the observer has taken what it takes."""
        if self._stops:
            return
        ends = control.should_training_stop  # what follows is the weights themselves
        self._stops = self._asked_to_end and not ends
        if ends:
            control.should_save = False
        if self._stops:
            control.should_save = control.should_training_stop = True

    def written(self, step: int) -> None:
        """Mark the checkpoint that the trainer has just written."""
        observer, folder = self._observer, self._folder / f"checkpoint-{step}"
        seen = Seen(
            step=step,
            made_by=self._made_by,
            files=checkpoints.files_of(folder),
            data_stream_sha256=observer.tokens.hexdigest(),
            steps=observer.steps,
            heldout=observer.heldout,
            memory=list(self._memory.read().values()),
            energy_wh=self._energy.read(),
            resumed_at_steps=observer.resumed_at_steps,
        )
        checkpoints.mark(folder, seen)
        observer.progress.checkpoint_step = step

    def _go_on(self, trainer: SftTrainer) -> Checkpoint | None:
        """Put the instruments where they were at the last whole checkpoint, if there is one."""
        found = checkpoints.last_whole(self._folder, self._made_by, print)
        stream = TokenStream()
        if found is not None:
            consume(stream, trainer, found.seen.step)
            if stream.hexdigest() != found.seen.data_stream_sha256:
                print(f"{found.folder.name} is not used: the training data are no longer those that it was trained on")
                found = None
        checkpoints.keep_only(self._folder, found.folder if found else None)
        if found is None:
            return None
        seen = found.seen
        print(f"Goes on from {found.folder.name}.")
        self._observer.progress.checkpoint_step = seen.step
        self._observer.go_on(stream, seen.steps, seen.heldout, seen.resumed_at_steps)
        self._memory.recall(seen.memory)
        self._energy.recall(seen.energy_wh)
        return found

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


def consume(stream: TokenStream, trainer: SftTrainer, steps: int) -> None:
    """Hash and count the examples of the first steps as training did."""
    stream.enter("untimed")
    for batch in trainer.micro_batches(steps):
        for part in data.unpack(batch):
            stream.consume(part["input_ids"], part["labels"], part["attention_mask"])
