"""How far each instrument errs: stimuli whose answer is known beforehand, and what the instrument read.

    python -m benchmarks.instruments        the table of docs/maintainers/performance.md, in half a minute

The same stimuli, and more, are tests with tolerances (tests/worker/test_instruments.py and its neighbours); this shows
the errors themselves. On a machine with a CUDA device, rows of the real device are added.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from bench.compose import compose
from bench.worker import methods, models
from bench.worker.instruments.clock import Clock, open_load, step_times
from bench.worker.instruments.energy import Energy, Rapl
from bench.worker.instruments.memory import Memory, breakdown, open_memory
from bench.worker.instruments.tokens import (
    IGNORED,
    TokenStream,
    linear_costs,
    matmul_peak_flops_per_second,
    needed_flops,
)

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One stimulus. `expected` comes from arithmetic or from another instrument, never from the one on trial."""

    instrument: str
    stimulus: str
    unit: str
    expected: float
    measured: float | None


def main() -> None:
    """Print the table."""
    kinds = [clock, memory, tokens, flops, energy, load, *([cuda] if torch.cuda.is_available() else [])]
    print(table([row for kind in kinds for row in kind()]))


def table(rows: list[Row]) -> str:
    """Markdown; the error in percent of what was expected."""
    headers = ["instrument", "stimulus", "unit", "expected", "measured", "error"]
    return tabulate(
        [[r.instrument, r.stimulus, r.unit, f"{r.expected:.5g}", _shown(r.measured), _error(r)] for r in rows],
        headers,
        "github",
        disable_numparse=True,
        colalign=("left", "left", "left", "right", "right", "right"),
    )


def clock() -> Iterator[Row]:
    """Against sleeps, another clock, and a made-up device."""
    spans = Clock()
    with spans.span("sleep"):
        time.sleep(0.5)
    yield Row("clock", "sleep 0.5 s", "s", 0.5, spans.read()["sleep"])
    end = time.monotonic() + 0.5
    with spans.span("spin"):
        while time.monotonic() < end:
            pass
    yield Row("clock", "spin 0.5 s by another clock", "s", 0.5, spans.read()["spin"])
    queued = [2.0]
    fake = Clock(synchronize=lambda: fake_time.append(fake_time[-1] + queued.pop() if queued else fake_time[-1]),
                 now=lambda: fake_time[-1])  # fmt: skip
    fake_time = [0.0]
    with fake.span("before"):
        queued.append(3.0)
    yield Row("clock", "3 s queued on a made-up device in the span, 2 s before it", "s", 3, fake.read()["before"])
    seconds, timed = [30.0, 2.0, 2.0, *np.linspace(1, 2, 101)], [False] * 3 + [True] * 101
    times = step_times(seconds, timed, compiled=True)
    yield Row("clock", "3 warm-up steps, then 101 of 1 to 2 s: p90", "s", 1.9, times["step_seconds_p90"])
    yield Row("clock", "the same: compiling", "s", 34 - 3 * 1.5, times["compile_seconds"])


def memory() -> Iterator[Row]:
    """Against arrays of known size, allocated and freed."""
    for mib in (128, 1024):
        read = _peaks_mib(phases={"empty": 0, "full": mib})
        yield Row("memory", f"allocate and free {mib} MiB", "MiB", mib, read["full"] - read["empty"])
    read = _peaks_mib(phases={"big": 300, "small": 50, "big ": 0})
    yield Row("memory", "300 MiB in one phase, 50 in the next: difference", "MiB", 250, read["big"] - read["small"])
    instrument = open_memory("cpu")
    instrument.enter("train")
    before, _ = instrument.now()
    block = np.ones(200 * MIB, dtype=np.uint8)
    held, _ = instrument.now()
    yield Row("memory", "hold 200 MiB: time line", "MiB", 200, _difference_mib(before, held))
    del block
    model = torch.nn.Linear(1000, 1000, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    static = breakdown(model, optimizer)
    total = static.weights_bytes + static.gradients_bytes + static.optimizer_bytes
    yield Row("memory", "a million fp32 weights, gradients, two Adam moments", "bytes", 16_000_004, total)


def tokens() -> Iterator[Row]:
    """Against a batch counted by hand: rows of 5, 3 and 2 tokens, padded to 5, with answers of 2, 1 and 1."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    ids = torch.arange(15).reshape(3, 5)
    labels = torch.full((3, 5), IGNORED)
    labels[0, 3:], labels[1, 2], labels[2, 1] = 7, 8, 9
    whole, cut = TokenStream(), TokenStream()
    whole.enter("timed")
    whole.consume(ids, labels, mask)
    for row, length in enumerate((5, 3, 2)):
        cut.consume(ids[row : row + 1, :length], labels[row : row + 1, :length], mask[row : row + 1, :length])
    counts = whole.read()["timed"]
    for name, expected in (("tokens", 10), ("supervised_tokens", 4), ("positions", 15), ("attended_pairs", 24)):
        yield Row("tokens", "3 rows of 5, 3 and 2 tokens, padded", name, expected, getattr(counts, name))
    digests = {whole.hexdigest(), cut.hexdigest()}
    yield Row("tokens", "the same in one batch, and in three without padding", "digests", 1, len(digests))


def flops() -> Iterator[Row]:
    """Against PyTorch's own counter on the tiny model, and its own timer on the same product."""
    with tempfile.TemporaryDirectory() as cache:
        for method in ("full", "lora"):
            (config,) = compose(["model=tiny-random", f"method={method}"], multirun=False)
            source = models.locate(config.model, Path(cache))
            # Eager attention: torch's counter does not know the fused kernel of CPUs.
            base = methods.load_base(config, source, "cpu", torch.float32, attn_implementation="eager")
            model = methods.make_trainable(base, config.method, 0)
            ids = torch.randint(0, 256, (2, 64))
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()  # the first layer passes it on too
            with FlopCounterMode(display=False) as counter:
                model(inputs_embeds=embedded).logits.sum().backward()
            pairs = 2 * 64 * 64  # PyTorch counts the pairs that the causal mask leaves out too
            ours = needed_flops(linear_costs(model), tokens=128, supervised_tokens=128, attended_pairs=pairs)
            yield Row("flops", f"{method}, tiny model, by torch's counter", "MFLOP", counter.get_total_flops() / 1e6,
                      ours / 1e6)  # fmt: skip
    ours = matmul_peak_flops_per_second("cpu", torch.float32, lambda: None)
    left, right = torch.randn(2, 1024, 1024)
    times = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    theirs = 2 * 1024**3 / min(times.blocked_autorange(min_run_time=0.5).times)
    yield Row("flops", "fp32 product, best of torch's Timer", "GFLOP/s", theirs / 1e9, ours / 1e9)


def energy() -> Iterator[Row]:
    """Against made-up counters; what this machine has is told by the environment of a record."""
    readings = iter([1000.0, 8200.0, 11800.0, 11800.0])
    made_up = Energy(lambda: next(readings))
    for phase in ("train", "heldout"):
        made_up.enter(phase)
    made_up.stop()
    yield Row("energy", "7,200 J in training, 3,600 J in between", "Wh", 2, made_up.read()["train"])
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "intel-rapl:0"
        package.mkdir()
        (package / "max_energy_range_uj").write_text("10000000")
        counter = package / "energy_uj"
        counter.write_text("9000000")
        rapl = Energy(Rapl(Path(folder)), wraps=True)
        rapl.enter("train")
        for microjoules in (2_000_000, 8_000_000, 1_000_000):
            counter.write_text(str(microjoules))
            rapl.sample()
        yield Row("energy", "RAPL counter that starts over twice", "J", 12, rapl.read()["train"] * 3600)


def load() -> Iterator[Row]:
    """Against a process that spins and is no descendant of ours."""
    spin = "import time\nend = time.monotonic() + 2.5\nwhile time.monotonic() < end: pass"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {spin!r}])"
    subprocess.run([sys.executable, "-c", orphan], check=True)
    time.sleep(0.3)
    other = open_load("cpu")
    time.sleep(2)
    yield Row("load", "another process spins on one processor", "processors", 1, other.read().cpu_cores)


def cuda() -> Iterator[Row]:
    """The real device: allocations, and the clock against CUDA's own events."""
    instrument = open_memory("cuda")
    instrument.enter("train")
    before, _ = instrument.now()
    block = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    del block
    peak = instrument.read()["train"].peak_bytes
    yield Row("memory", "CUDA: allocate and free 256 MiB", "MiB", 256, _difference_mib(before, peak))
    matrix = torch.randn(8192, 8192, device="cuda")
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    spans = Clock(torch.cuda.synchronize)
    for span in ("first, loads kernels", "timed"):
        with spans.span(span):
            started.record()
            for _ in range(20):
                matrix @ matrix
            ended.record()
    yield Row("clock", "CUDA: 20 products, by events", "s", started.elapsed_time(ended) / 1e3, spans.read()["timed"])


def _peaks_mib(phases: dict[str, int]) -> dict[str, float]:
    """Peak of every phase while an array of so many MiB is allocated and freed in it; a trailing blank re-enters."""
    instrument: Memory = open_memory("cpu")
    for phase, mib in phases.items():
        instrument.enter(phase.strip())
        np.ones(mib * MIB, dtype=np.uint8)
    return {phase: (peak.peak_bytes or 0) / MIB for phase, peak in instrument.read().items()}


def _difference_mib(low: int | None, high: int | None) -> float | None:
    return None if low is None or high is None else (high - low) / MIB


def _shown(value: Any) -> str:
    return "unknown" if value is None else f"{value:.5g}"


def _error(row: Row) -> str:
    return "-" if row.measured is None else f"{100 * (row.measured / row.expected - 1):+.2f}%"


if __name__ == "__main__":
    main()
