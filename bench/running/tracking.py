"""A finished record, and then the report, sent to a tracker.

The record in its folder is the result; tracking is a copy of it. A tracker that fails is reported and changes
nothing. Nothing is sent unless `tracking=wandb` or `tracking=tensorboard` is chosen, and with the latter, or in
W&B's offline mode, nothing leaves the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.running import tracking_tensorboard, tracking_wandb
from bench.spec.config import RunConfig
from bench.spec.layout import run_folder
from bench.spec.record import Record


def track(config: RunConfig, record: Record) -> str | None:
    """Send a record if the config asks for it. Returns what went wrong, or None."""
    send = {"wandb": tracking_wandb.send, "tensorboard": tracking_tensorboard.send}.get(config.tracking.kind)
    kept = f"the record in {run_folder(config)} is complete without it"
    return _trouble(lambda: send(config, record), kept) if send else None


def track_report(config: RunConfig, folder: Path) -> str | None:
    """Send a sweep's report where its tracker takes one (W&B, as an artifact). Returns what went wrong, or None."""
    if config.tracking.kind != "wandb":
        return None
    return _trouble(lambda: tracking_wandb.send_report(config, folder), f"the report is in {folder}")


def _trouble(send: Callable[[], None], kept: str) -> str | None:
    try:
        send()
    except ImportError as error:
        return f'tracking: {error}; install it: pip install -c constraints.txt -e ".[tensorboard]"; {kept}'
    except Exception as error:  # a tracker's own trouble must never cost a finished run
        return f"tracking: {type(error).__name__}: {error}; {kept}"
    return None
