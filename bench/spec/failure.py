"""The ways a run can end, and what each means for a person.

A failed run is a result: its record says which kind of failure, in which stage and phase, and what to do next.
A configuration error is not a result: it is reported, all mistakes at once, before anything runs (exit code 2).
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    OOM = "oom"  # out of memory, on the device or the host
    TIMEOUT = "timeout"  # a stage ran past hardware.stage_timeout_seconds
    KILLED = "killed"  # ended by a signal that neither the harness nor a memory limit sent
    ERROR = "error"  # any other failure


# Exit codes of a worker child. Python itself uses 1 for an uncaught exception.
EXIT_OK, EXIT_ERROR, EXIT_CONFIGURATION, EXIT_OOM = 0, 1, 2, 3

NEXT_STEP = {
    Status.OOM: "Lower train.micro_batch (the effective batch stays), set train.gradient_checkpointing=true, "
    "or choose a smaller method (lora, qlora).",
    Status.TIMEOUT: "Raise hardware.stage_timeout_seconds, or lower the budget (train.max_steps, task.*_examples).",
    Status.KILLED: "Run the same command again: only this run is repeated. If it happens again, look for the "
    "system's out-of-memory killer (dmesg) or a scheduler's limit.",
    Status.ERROR: "Read the log named above; the same command again repeats only this run.",
}

_OOM_IN_STAGE = {
    "fit": "Raise hardware.memory_budget_gib, set train.gradient_checkpointing=true, or choose a smaller method (lora, "
    "qlora): not even the smallest micro-batch that was tried fits.",
    "evaluate": "Lower hardware.generate_batch, or evaluate on a device with more memory; what was trained is kept.",
    "regression": "Lower suite.batch_size, or evaluate on a device with more memory; what was trained is kept.",
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
    resumes = checkpoint_step and status is not Status.OOM  # it would run out again
    return NEXT_STEP[status] + (f" The same command resumes from step {checkpoint_step}." if resumes else "")


class ConfigurationError(Exception):
    """Mistakes in what the user asked for, found before anything ran.

    Attributes:
        problems: one line each: what, what was given, what is allowed, how to mend it.
    """

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))

    def message(self) -> str:
        """The text shown to a person."""
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"Configuration: {head}; nothing was run."] + [f"  - {p}" for p in self.problems])
