"""Several devices that share every training step: one process each, started as torchrun does.

    python -m bench.worker.multi COUNT RUN_DIR STAGE

Together they compute the step that one process would: micro-batches are dealt in turn, so that those computed at the
same moment are of like length. The first process, rank 0, writes everything that is written; a process alone is a
team of one, and nothing here costs it anything. Numerics stay those of one device: weights, gradients and what is
exchanged keep their dtypes and autocast rounds in the forward pass. FSDP's and DeepSpeed's usual bf16 modes are not
used, because they also round norms, embeddings, adapters and gradients (docs/gpu.md).

    >>> team = Team.of_this_process()
    >>> team.all(seconds)                # [0.51, 0.49]: of every process, in every process
    >>> deal(6, batch_size=4, micro_batch=1, rank=1, size=2)
    [[1], [3], [5]]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.distributed.fsdp import FSDPModule

from bench.config import DEEPSPEED, RunConfig
from bench.outcome import EXIT_ERROR, EXIT_OK
from bench.record import DeviceShare
from bench.worker.instruments.tokens import IGNORED
from bench.worker.main import die_with_parent

if TYPE_CHECKING:
    from bench.worker.loss import Batch
    from bench.worker.observe import Observer

T = TypeVar("T")
Consumed = Sequence[tuple["Batch", "float | torch.Tensor"]]  # micro-batches with their losses
OwnStep = tuple[float, tuple[int | None, int | None], Consumed]  # seconds, bytes (held, peak so far), micro-batches


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> Team:
        """From the variables that torch's launcher sets; a team of one without them."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def family(self) -> int:
        """The process whose descendants are all of the team."""
        return os.getpid() if self.size == 1 else os.getppid()

    def device(self, kind: str) -> str:
        """The device of this process; "cuda" with its number among several, as bitsandbytes' weights need it."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" and self.size > 1 else kind

    def join(self, device: str, timeout_seconds: float) -> None:
        """Meet the others; collective operations work from here on. On CUDA this process takes its own device."""
        if self.size == 1 or torch.distributed.is_initialized():
            return
        if device == "cuda":
            torch.cuda.set_device(self.device(device))
        backend = "gloo" if device == "cpu" else "cuda:nccl,cpu:gloo"  # objects and offloaded tensors go by gloo
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))

    def leave(self) -> None:
        """Part in good order: after this no process waits for another."""
        if self.size > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def all(self, value: T) -> list[T]:
        """The value of every process, by rank, in every process. Tensors must be on the CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values


ALONE = Team()


# -------------------------------------------------------------------------------------------------------- sharing
def deal(rows: int, *, batch_size: int, micro_batch: int, rank: int, size: int) -> list[list[int]]:
    """The micro-batches of one process over the whole training, as indices of rows.

    All processes compute equally many, because each takes part in every collective operation. A last, smaller step is
    filled up with the index `rows`, the idle row: one token without a label, which changes no gradient.
    """
    mine: list[list[int]] = []
    for start in range(0, rows, batch_size):
        end = min(start + batch_size, rows)
        step = [list(range(at, min(at + micro_batch, end))) for at in range(start, end, micro_batch)]
        step += [[rows]] * (-len(step) % size)
        mine += step[rank::size]
    return mine


def idle_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One token of the first row, without a label."""
    first = [*rows[0]["prompt_ids"], *rows[0]["answer_ids"]]
    return {"prompt_ids": first[:1], "answer_ids": []}


def is_idle(batch: dict[str, Any]) -> bool:
    """Whether a collated micro-batch holds the idle row alone: every other has labels."""
    return not bool((batch["labels"] != IGNORED).any())


def share_of_rows(rows: list[dict[str, Any]], team: Team) -> list[dict[str, Any]]:
    """Every `team.size`-th row, longest first, so that all have equally much to evaluate; idle rows even it out."""
    if team.size == 1:
        return rows
    ordered = sorted(rows, key=lambda row: -len(row["prompt_ids"]) - len(row["answer_ids"]))
    ordered += [idle_row(rows)] * (-len(rows) % team.size)
    return ordered[team.rank :: team.size]


def in_order(shares: Sequence[Sequence[T]]) -> list[T]:
    """Dealt micro-batches (equally many to each process) in the order of one process.

    >>> in_order([["a", "c"], ["b", "d"]])
    ['a', 'b', 'c', 'd']
    """
    return [part for together in zip(*shares, strict=True) for part in together]


# ------------------------------------------------------------------------------------------------------- measuring
def whole_step(own: OwnStep, team: Team) -> OwnStep:
    """A step of all processes: the slowest one's time, the sum of memory, all micro-batches."""
    if team.size == 1:
        return own
    seconds, memory, consumed = own
    sent = [({name: part.cpu() for name, part in batch.items()}, float(loss)) for batch, loss in consumed]
    all_seconds, all_memory, all_consumed = zip(*team.all((seconds, memory, sent)), strict=True)
    held, peaks = zip(*all_memory, strict=True)
    return max(all_seconds), (_sum(held), _sum(peaks)), in_order(all_consumed)


def memory_of_all(team: Team, config: RunConfig, observer: Observer) -> dict[str, Any]:
    """The fields of `TrainResult` about memory and devices: sums over the processes, and what each device held.

    Every process must call.
    """
    phases, breakdowns = team.all(observer.memory.read()), team.all(observer.breakdown)
    seconds = sum(step.seconds for step in observer.steps if step.timed)
    shares = [
        DeviceShare(
            rank=rank,
            peak_bytes=phases[rank]["train"].peak_bytes,
            tokens_per_second=observer.timed_tokens[rank] / seconds if seconds else None,
            breakdown=breakdowns[rank],
        )
        for rank in range(team.size)
    ]
    return {
        "memory": [_summed([held[name] for held in phases]) for name in phases[0]],
        "breakdown": None if None in breakdowns else _summed(breakdowns),
        "devices": team.size,
        "strategy": config.hardware.strategy,
        "per_device": shares if team.size > 1 else [],
    }


def _summed(entries: Sequence[Any]) -> Any:
    """One record of all processes; a number that one of them does not know is unknown."""
    values = [asdict(entry) for entry in entries]
    numbers = [name for name, first in values[0].items() if not isinstance(first, str)]
    return replace(entries[0], **{name: _sum(entry[name] for entry in values) for name in numbers})


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


# ------------------------------------------------------------------------------------------------------ strategies
def arguments(config: RunConfig, compute_dtype: torch.dtype) -> dict[str, Any]:
    """The fields that `hardware.strategy` adds to `transformers.TrainingArguments`."""
    hardware = config.hardware
    if hardware.strategy == "ddp":
        return {"ddp_find_unused_parameters": False}  # every parameter has a part in every loss
    if hardware.strategy == "fsdp":  # FSDP2: each decoder layer a unit, given back after its forward pass
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "reshard_after_forward": True,
                "cpu_offload": hardware.cpu_offload,
                "state_dict_type": "FULL_STATE_DICT",
            },
            # Gradients are cut after every micro-batch: whole ones would be kept for the whole model until the last.
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        }
    if hardware.strategy in DEEPSPEED:
        return {"deepspeed": _deepspeed(config, compute_dtype)}
    return {}


def _deepspeed(config: RunConfig, compute_dtype: torch.dtype) -> dict[str, Any]:
    """A configuration of ZeRO stage 2 or 3; "auto" is filled in by `transformers` from its own arguments."""
    stage = 2 if config.hardware.strategy == "zero2" else 3
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # whole weights for `whole_state`
    if config.hardware.cpu_offload:
        kept = ["offload_optimizer", "offload_param"] if stage == 3 else ["offload_optimizer"]
        zero |= {name: {"device": "cpu", "pin_memory": True} for name in kept}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": compute_dtype is torch.bfloat16, "dtype": "bfloat16"},
        "communication_data_type": "fp32",
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, as everywhere
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def cut_on_cpu_too(trainer: Any) -> None:
    """Let FSDP work on CPUs: accelerate knows it for other devices only, though torch's FSDP2 needs just gloo there."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    if trainer.args.fsdp_plugin_args is not None and state.distributed_type is DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        trainer.is_fsdp_enabled = True


def whole_state(trainer: Any, config: RunConfig) -> dict[str, torch.Tensor] | None:
    """The trained weights, put together on the CPU of the first process; every process must call.

    None if every process has it whole. Tied weights appear once.
    """
    if config.hardware.strategy == "zero3":
        state: dict[str, torch.Tensor] | None = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return state
    if config.hardware.strategy != "fsdp":
        return None
    for module in trainer.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # embedding and head stay gathered after an evaluation
    whole = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            gathered = parameter.full_tensor()
            if trainer.accelerator.is_main_process:
                whole[name] = gathered.cpu()
    return whole


# -------------------------------------------------------------------------------------------------------- starting
def launch(count: int, folder: Path, stage: str) -> int:
    """Run a stage by several processes. Returns the exit code; a negative one is minus a signal's number.

    torch's launcher starts them, one a device, and ends all when one fails; but it exits with 1 whatever happened.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    die_with_parent()
    options = ["--standalone", f"--nproc-per-node={count}", "--module", "bench.worker", str(folder), stage]
    try:
        run.run(run.parse_args(options))
        return EXIT_OK
    except ChildFailedError as error:
        return first_cause([failure.exitcode for failure in error.failures.values()], folder)
    except SignalException as error:
        return -int(error.sigval)


def first_cause(codes: Sequence[int], folder: Path) -> int:
    """The exit code, among those of all processes that failed, of the one that failed first.

    What a process wrote to `error.json` comes first, unless it is only that it lost another: then that one died by a
    signal. Losing another may also end a process by a signal of its own (gloo aborts), so SIGKILL, which comes from
    outside, goes before others; SIGTERM is what the launcher ends the rest with.
    """
    error: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        error = json.loads((folder / "error.json").read_text())
    if error and not error.get("lost_peer"):
        return int(error["exit_code"])
    signals = [code for code in codes if code < 0 and code != -signal.SIGTERM]
    if signals:
        return -signal.SIGKILL if -signal.SIGKILL in signals else signals[0]
    return int(error["exit_code"]) if error else max(codes, default=EXIT_ERROR)


if __name__ == "__main__":
    code = launch(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    if code < 0:  # end by the same signal, so that the parent sees what a process alone would show it
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
