"""TensorBoard: curves and scalars as event files in the folder `tensorboard/` of a run.

    tensorboard --logdir results/default

tensorboardX writes them: torch's own writer would bring torch into the parent.
"""

from __future__ import annotations

from bench.running.tracked import curves, summary
from bench.spec.config import RunConfig
from bench.spec.layout import run_folder
from bench.spec.record import Record, to_json


def send(config: RunConfig, record: Record) -> None:
    """Event files, written anew."""
    from tensorboardX import SummaryWriter  # an extra

    folder = run_folder(config)
    target = folder / "tensorboard"
    for old in target.glob("events.out.*"):
        old.unlink()
    curve = curves(record, folder)
    last = max(curve, default=0)
    with SummaryWriter(str(target), write_to_disk=True) as writer:
        for step, values in curve.items():
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        for name, scalar in summary(record).items():
            if isinstance(scalar, int | float):
                writer.add_scalar(f"result/{name}", scalar, last)
        writer.add_text("config", f"```json\n{to_json(config)}\n```", last)
