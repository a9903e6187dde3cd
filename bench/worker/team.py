"""The processes that share every training step, one a device, and what they tell one another.

`bench.worker.together` starts them; the first, rank 0, writes everything that is written. A process alone is a team of
one, and nothing here costs it anything.

    >>> team = Team.of_this_process()
    >>> team.all(seconds)                # [0.51, 0.49]: of every process, to every process
    >>> team.to_first(batches)           # of every process, to rank 0; [] elsewhere
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> Team:
        """From the variables that torch's launcher sets; alone where there are none."""
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
        """Where this process loads a model: "cuda" by its number among several, as bitsandbytes' weights need it."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" and self.size > 1 else kind

    def join(self, device: str, timeout_seconds: float) -> None:
        """Meet the others; collective operations work from here on. On CUDA this process takes its own device."""
        import torch

        if self.size == 1 or torch.distributed.is_initialized():
            return
        if device == "cuda":
            torch.cuda.set_device(self.device(device))
        backend = "gloo" if device == "cpu" else "cuda:nccl,cpu:gloo"  # objects and offloaded tensors go by gloo
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))

    def leave(self) -> None:
        """Part in good order: after this no process waits for another."""
        if self.size > 1:
            import torch

            if torch.distributed.is_initialized():
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block, then all others: what it leaves in a cache is there for them."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def all(self, value: T) -> list[T]:
        """The value of every process, by rank, in every process. Tensors must be on the CPU."""
        if self.size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def to_first(self, value: T) -> list[T]:
        """The value of every process, by rank, in the first; an empty list in the others."""
        if self.size == 1:
            return [value]
        import torch

        values: list[Any] | None = [None] * self.size if self.is_first else None
        torch.distributed.gather_object(value, values)
        return values or []


ALONE = Team()
