"""Puts one fault into a child process; Python imports this module by its name when PYTHONPATH leads here.

The product knows nothing of it. The environment says what happens where:

    FAULT        what: a key of `DEEDS`
    FAULT_PLACE  where in a child: module:function, or module:class.method
    FAULT_CALL   at which call of it, from 1
    FAULT_WITH   what the deed needs: a device, a file, a control group
    FAULT_RANK   in which of several processes that train together; by default the first
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import itertools
import os
import signal
import sys
import time

WITH = os.environ.get("FAULT_WITH", "")
IS_CHILD = "bench.worker" in sys.orig_argv and os.environ.get("RANK", "0") == os.environ.get("FAULT_RANK", "0")


def allocate_a_pebibyte():
    """The allocator of the device is asked, for real, for what no machine has."""
    import torch

    torch.empty(1 << 50, dtype=torch.uint8, device=WITH or "cpu")


def fail_as_cuda():
    """What PyTorch raises on a CUDA device, raised where there is none."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1.00 GiB free.")


def outgrow_the_control_group():
    """Join a control group with little memory and use more, until the kernel ends the process."""
    with open(os.path.join(WITH, "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1)  # the parent looks twice a second
    kept = [bytearray(os.urandom(1 << 20)) for _ in range(4096)]
    raise AssertionError(f"{len(kept)} MiB, and still alive")


def fill_the_disk():
    """Write until the file system has no room."""
    with contextlib.suppress(OSError), open(WITH, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def jump_the_clock():
    """Let the system time leap a year ahead, back, ahead ... at each look; monotonic clocks go on as they do."""
    year, leaps, now, now_ns = 365 * 86400, itertools.cycle((1, 0, -1)), time.time, time.time_ns
    time.time = lambda: now() + next(leaps) * year
    time.time_ns = lambda: now_ns() + next(leaps) * year * 10**9


def note_the_start():
    """Append the stage that this process runs."""
    with open(WITH, "a") as file:
        file.write(" ".join(sys.orig_argv[-2:]) + "\n")


DEEDS = {
    "oom": allocate_a_pebibyte,
    "cuda_oom": fail_as_cuda,
    "kernel_oom": outgrow_the_control_group,
    "fill": fill_the_disk,
    "link to full": lambda: os.symlink("/dev/full", WITH),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "hang": lambda: time.sleep(3600),
    "orphan": lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(3)),
}


class AfterImport(importlib.abc.MetaPathFinder):
    """Changes one function of a module as soon as it has been imported."""

    def __init__(self, place, call, deed):
        self.module, _, path = place.partition(":")
        *self.owners, self.name = path.split(".")
        self.calls_left, self.deed = call, deed

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec

    def change(self, module):
        owner = functools.reduce(getattr, self.owners, module)
        function = getattr(owner, self.name)

        @functools.wraps(function)
        def changed(*arguments, **options):
            self.calls_left -= 1
            if self.calls_left == 0:
                self.deed()
            return function(*arguments, **options)

        setattr(owner, self.name, changed)


FAULT = os.environ.get("FAULT")
if FAULT == "clock":
    jump_the_clock()
elif FAULT == "note" and IS_CHILD:
    note_the_start()
elif FAULT in DEEDS and IS_CHILD:
    sys.meta_path.insert(0, AfterImport(os.environ["FAULT_PLACE"], int(os.environ["FAULT_CALL"]), DEEDS[FAULT]))
