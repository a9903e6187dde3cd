"""How a stage or a run ended: its status, a child's exit code, and what a person does next.

>>> next_step(Status.OOM, "evaluate", "CUDA out of memory")
'Lower hardware.generate_batch, or evaluate on a device with more memory; what was trained is kept.'
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

Stage = Literal[
    "bundle", "fetch", "prepare", "train", "evaluate", "regression", "frontier", "weights", "serve", "export", "judge",
    "check", "doctor", "count",
]  # fmt: skip


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    OOM = "oom"  # out of memory, on the device or the host
    TIMEOUT = "timeout"  # a stage ran past hardware.stage_timeout_seconds
    DIVERGED = "diverged"  # a loss, a gradient norm or a weight is not finite; nothing was evaluated
    KILLED = "killed"  # ended by a signal that neither the harness nor a memory limit sent
    ERROR = "error"  # any other failure


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Failure:
    """Why a run did not finish, for a person."""

    stage: Stage
    phase: str | None  # the last phase that the child announced
    message: str
    next_step: str
    exit_code: int | None  # negative: minus the signal's number
    log_tail: str
    last_known_peak_bytes: int | None = None
    step: int | None = None  # at which training diverged; 0: before the first


# Exit codes of a worker child. Python itself uses 1 for an uncaught exception.
EXIT_OK, EXIT_ERROR, EXIT_CONFIGURATION, EXIT_OOM, EXIT_DIVERGED = 0, 1, 2, 3, 4

NEXT_STEP = {
    Status.OOM: "Lower train.micro_batch (the effective batch stays), set train.gradient_checkpointing=true, "
    "or choose a smaller method (lora, qlora).",
    Status.TIMEOUT: "Raise hardware.stage_timeout_seconds, or lower the budget (train.max_steps, task.*_examples).",
    Status.DIVERGED: "Lower method.learning_rate (try a third of it; `make tune` searches), raise "
    "train.warmup_fraction or lower train.max_grad_norm; steps.jsonl has the losses until then. If it was so before "
    "the first step, the weights are at fault or hardware.compute_dtype=float32 is needed.",
    Status.KILLED: "Run the same command again: only this run is repeated. If it happens again, look for the "
    "system's out-of-memory killer (dmesg) or a scheduler's limit.",
    Status.ERROR: "Read the log named above; the same command again repeats only this run.",
}

_OOM_IN_STAGE = {
    "fit": "Not even one example a micro-batch fits: set train.gradient_checkpointing=true, lower train.max_length, "
    "choose a smaller method (lora, qlora), or raise hardware.memory_budget_gib where the device has more.",
    "evaluate": "Lower hardware.generate_batch, or evaluate on a device with more memory; what was trained is kept.",
    "regression": "Lower suite.batch_size, or evaluate on a device with more memory; what was trained is kept.",
    "frontier": "Lower suite.batch_size and hardware.generate_batch, or set evaluation.points=[]; all else is kept.",
    "serve": "Lower serve.batch_sizes, serve.prompt_tokens or serve.adapters; the run itself is finished and kept.",
}
_FULL_DISK = "Free some space, or name other folders (paths.results, paths.artifacts, paths.cache); the same command "
_FULL_DISK += "again runs only what is missing."


def next_step(status: Status, stage: str, message: str, checkpoint_step: int | None = None) -> str:
    """What a person does about a failed stage, told from how, where and with which words it ended.

    Args:
        checkpoint_step: of the last checkpoint that training left; 0 or None: it left none.
    """
    if status is Status.OOM and stage in _OOM_IN_STAGE:
        return _OOM_IN_STAGE[stage]
    if status is Status.ERROR and ("No space left on device" in message or "Disk quota exceeded" in message):
        return _FULL_DISK
    resumes = checkpoint_step and status not in (Status.OOM, Status.DIVERGED)  # it would end in the same way
    return NEXT_STEP[status] + (f" The same command resumes from step {checkpoint_step}." if resumes else "")
