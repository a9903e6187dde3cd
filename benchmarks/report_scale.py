"""How long the report of a large sweep takes, and its memory: 1,000 made-up runs, or 10,000 test examples a run.

    python -m benchmarks.report_scale               prints the table, one process a shape
    python -m benchmarks.report_scale seeds         that shape alone

Each shape's folder is made first (tests/report/synthetic.py) and is not counted; then `python -m bench report` runs
on it in a process of its own. Time: of that process, imports included, and that of processors, which other work on the
machine does not stretch. Memory: its peak resident set (wait4's ru_maxrss). Linux.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "report"))  # tests are no package; pytest does the same

import synthetic  # noqa: E402

from bench.compose import with_settings  # noqa: E402

_TRAINED = ("full", "lora", "qlora")


def seeds(folder: Path) -> None:
    """One base and three methods with 333 seeds each."""
    _write(folder, "base", 0)
    for method in _TRAINED:
        for seed in range(333):
            _write(folder, method, seed)


def tasks(folder: Path) -> None:
    """100 tasks, each with a base and three methods with three seeds."""
    for number in range(100):
        _write(folder, "base", 0, task=f"task-{number}")
        for method in _TRAINED:
            for seed in range(3):
                _write(folder, method, seed, task=f"task-{number}")


def rates(folder: Path) -> None:
    """One base, and 33 learning rates of three methods with ten seeds each: 100 arms."""
    _write(folder, "base", 0)
    for method in _TRAINED:
        for number in range(33):
            for seed in range(10):
                _write(folder, method, seed, rate=1e-6 * 1.3**number)


def examples(folder: Path) -> None:
    """One base and three methods, two seeds each, 10,000 test examples."""
    synthetic.EXAMPLES = 10_000
    synthetic.build_sweep(folder, failed=False)


SHAPES: dict[str, Callable[[Path], None]] = {shape.__name__: shape for shape in (seeds, tasks, rates, examples)}


def _write(folder: Path, method: str, seed: int, task: str = "docstrings", rate: float | None = None) -> None:
    """One run folder; its samples and items are those of seeds 0 and 1 in turn."""
    record = synthetic.make_record(method, seed % 2)
    config = with_settings(record.config, {"seed": seed, "task.name": task})
    if rate is not None:
        config = with_settings(config, {"method.learning_rate": rate})
    train = replace(record.train, data_stream_sha256=f"{seed:064x}") if record.train else None
    name = f"{method}-{task}-s{seed}-{rate or 0:.3e}"
    whole = replace(record, run_id=name, seed=seed, task=task, config=config, train=train)
    steps = [] if method == "base" else synthetic.make_steps(method, seed % 2)
    samples, items = synthetic.make_samples(method, seed % 2), synthetic.make_items(method, seed % 2)
    synthetic.write_run(folder, whole, steps, samples, items)


def measure(shape: str) -> list[str]:
    """One row: seconds and peak memory of the report, and the size of its HTML."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, shape)
        SHAPES[shape](folder)
        runs = sum(1 for _ in folder.glob("*/record.json"))
        started = time.perf_counter()
        command = [sys.executable, "-m", "bench", "report", str(folder)]
        child = os.posix_spawn(sys.executable, command, os.environ, file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, f"{parent}/out", os.O_WRONLY | os.O_CREAT, 0o600)
        ])  # fmt: skip
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - started
        if status:
            raise SystemExit(f"the report of {shape} failed: {' '.join(command)}")
        size = (folder / "report.html").stat().st_size
    own = usage.ru_utime + usage.ru_stime
    return [shape, f"{runs:,}", f"{seconds:.1f}", f"{own:.1f}", f"{usage.ru_maxrss / 2**20:.2f}", f"{size / 1e6:.2f}"]


def main() -> None:
    """The table."""
    wanted = sys.argv[1:] or list(SHAPES)
    unknown = [name for name in wanted if name not in SHAPES]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: no such shape; there are {', '.join(SHAPES)}")
    rows = [measure(name) for name in wanted]
    headers = ["sweep", "runs", "report, s", "of processors, s", "peak memory, GiB", "HTML, MB"]
    print(tabulate(rows, headers, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
