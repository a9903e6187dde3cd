"""What other load costs a run: the slowdown of matrix products while another process takes a share of a processor.

    python -m benchmarks.busy        the figures of docs/numbers.md, in about two minutes

The other process is no descendant, and works in slices of 20 ms. Shares alternate, so that a machine that grows slower
meanwhile does so for all of them. `marked` is what `bench.fairness.busy` would say of the run.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tabulate import tabulate

from bench.fairness import busy
from bench.record import Environment
from bench.worker.instruments.clock import OtherLoad, open_load

SHARES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)  # of one processor
ROUNDS, SECONDS, SLICE_SECONDS = 5, 3.0, 0.02
LOAD = """
import sys, time
share, length = float(sys.argv[1]), float(sys.argv[2])
print("on", flush=True)
end = time.monotonic() + 30
while time.monotonic() < end:
    started = time.perf_counter()
    while time.perf_counter() < started + share * length: pass
    time.sleep(max(0.0, started + length - time.perf_counter()))
"""


def main() -> None:
    """Print the table."""
    measured: dict[float, list[tuple[float, OtherLoad]]] = {share: [] for share in SHARES}
    products_per_second(1.0)  # warm up
    for _ in range(ROUNDS):
        for share in SHARES:
            with stranger(share):
                load = open_load("cpu")
                speed = products_per_second(SECONDS)
                measured[share].append((speed, load.read()))
    alone = statistics.median(speed for speed, _ in measured[0.0])
    rows = [row(share, runs, alone) for share, runs in measured.items()]
    headers = ["asked of the other process", "measured other load", "stolen", "products/s of alone", "marked"]
    print(f"{len(os.sched_getaffinity(0))} processors, {torch.get_num_threads()} threads, {ROUNDS} rounds\n")
    print(tabulate(rows, headers, "github", disable_numparse=True))


def row(share: float, runs: list[tuple[float, OtherLoad]], alone: float) -> list[str]:
    """Medians and ranges over the rounds."""
    speeds = sorted(speed / alone for speed, _ in runs)
    others = sorted(load.cpu_cores or 0.0 for _, load in runs)
    stolen = statistics.median(load.stolen_cores or 0.0 for _, load in runs)
    marked = sum(busy(environment(load)) is not None for _, load in runs)
    return [f"{share:.2f}", spread(others), f"{stolen:.2f}", spread(speeds), f"{marked} of {len(runs)}"]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def environment(load: OtherLoad) -> Environment:
    """What a stage would have recorded."""
    cpus = len(os.sched_getaffinity(0))
    return Environment("cpu", 1, cpus, "float32", "sdpa", "off", torch.__version__, cpus=cpus,
                       other_cpu_cores=load.cpu_cores, stolen_cpu_cores=load.stolen_cores)  # fmt: skip


def products_per_second(seconds: float) -> float:
    """Of fp32 matrices on all threads."""
    left, right = torch.randn(2, 512, 512)
    count, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        left @ right
        count += 1
    return count / (time.perf_counter() - started)


@contextmanager
def stranger(share: float) -> Iterator[None]:
    """A process without a parent that keeps a share of one processor busy."""
    if not share:
        yield
        return
    start = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {LOAD!r}, {str(share)!r}, {str(SLICE_SECONDS)!r}],\n"
        "                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
        "child.stdout.readline()\n"
        "print(child.pid)"
    )
    done = subprocess.run([sys.executable, "-c", start], check=True, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


if __name__ == "__main__":
    main()
