"""Two sweeps at once on one folder, and a clock that jumps."""

from __future__ import annotations

import ast
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from faults import ROOT, Fault, Place, after_training, environment, how

from bench.outcome import Status
from bench.record import Record

pytestmark = pytest.mark.slow


def two_sweeps(finished: Place, base: Path) -> tuple[Place, list[tuple[int, str]], Counter[str]]:
    """Each sweep's exit code and output, and how often each stage of each run was started."""
    where = after_training(finished, base)
    starts = base / "starts"
    command, env = where.sweep("method=base,lora"), environment(Fault("note", using=str(starts)))
    both = [
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [sweep.communicate(timeout=300)[0] for sweep in both]
    started = Counter(Path(line).name for line in starts.read_text().splitlines())
    return where, [(sweep.returncode, output) for sweep, output in zip(both, outputs, strict=True)], started


def jumping_clock(finished: Place, base: Path) -> tuple[Record, float]:
    """A run in which parent and children see the time jump; and the seconds that it really took, at most."""
    where = finished.copy(base, without=("lora-*",))
    started = time.monotonic()
    record = where.execute("method=lora", fault=Fault("clock"))
    return record, time.monotonic() - started


CASES: dict[str, Callable[[Place, Path], object]] = {"two sweeps": two_sweeps, "clock": jumping_clock}


def test_two_sweeps_on_one_folder_share_the_work(cases, finished, shows) -> None:
    where, both, started = cases("two sweeps")
    assert [code for code, _ in both] == [0, 0], both
    base, lora = where.folder("method=base"), where.folder("method=lora")
    stages = {name: count for name, count in started.items() if not name.endswith("prepare")}
    assert stages == {f"{base.name} evaluate": 1, f"{lora.name} evaluate": 1}
    assert where.record("method=base").status is where.record("method=lora").status is Status.OK
    assert where.record("method=lora").train == finished.record("method=lora").train
    report, table = (base.parent / name for name in ("report.html", "tables/runs.csv"))
    assert report.read_text().rstrip().endswith("</html>")
    assert {base.name, lora.name} <= set(table.read_text().replace("\n", ",").split(","))
    for plot in (base.parent / "plots").glob("*.svg"):
        assert plot.read_text().rstrip().endswith("</svg>")
    injected = "the same command twice at the same time"
    shows("two sweeps on one folder", injected, "both exit with 0", "each stage is run once; the report is whole")


def test_a_jumping_clock_changes_no_duration(cases, finished, shows) -> None:
    record, real_seconds = cases("clock")
    assert record.status is Status.OK
    assert record.train.data_stream_sha256 == finished.record("method=lora").train.data_stream_sha256
    durations = dict(seconds_of(asdict(record) | {"config": None, "provenance": None}))
    assert len(durations) > 10
    assert all(0 <= seconds <= real_seconds for seconds in durations.values()), durations
    injected = "`time.time` leaps by a year, ahead and back, at each call in parent and children"
    shows("the clock jumps", injected, how(record), "every duration: none is negative or longer than the test")


def test_only_dates_are_told_by_the_clock() -> None:
    """Durations come from monotonic clocks."""
    found = []
    for path in sorted((ROOT / "bench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in {"time.time", "time.time_ns", "datetime.now"}:
                found.append((path.name, ast.unparse(node)))
    # started_at of a run and of its stages, exported_at, finished_at
    files = ("execute.py", "execute.py", "exporting.py", "tuning.py")
    age_of_a_file = ("identity.py", "time.time")
    assert found == [age_of_a_file, *((name, "datetime.now") for name in files)]


def seconds_of(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number below a name that says seconds."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from seconds_of(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from seconds_of(inner, f"{name}[{i}]")
    elif isinstance(value, float) and "seconds" in name:
        yield name, value
