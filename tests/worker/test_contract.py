"""The contract of the instruments (`bench.worker.instruments`), held against each of them with a scripted stimulus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bench.record import PhaseMemory
from bench.worker.instruments import Instrument
from bench.worker.instruments.clock import Clock
from bench.worker.instruments.energy import Energy
from bench.worker.instruments.memory import Memory
from bench.worker.instruments.tokens import TokenStream


class FakeMeter:
    """Memory that is held only for a moment."""

    def __init__(self) -> None:
        self.peak = 0

    def release(self) -> None: ...

    def reset_peak(self) -> None:
        self.peak = 0

    def now(self) -> tuple[int, int]:
        return 0, self.peak

    def read(self, phase: str) -> PhaseMemory:
        return PhaseMemory(phase, self.peak, None)


@dataclass
class Case:
    """An instrument, what feeds it an amount, and the amount in a reading."""

    instrument: Instrument[Any]
    stimulate: Callable[[int], None]
    amount: Callable[[Any], float]
    adds_up: bool  # else the larger of two entries is kept


def clock() -> Case:
    seconds = [0.0]
    clock = Clock(now=lambda: seconds[0])
    return Case(clock, lambda n: seconds.__setitem__(0, seconds[0] + n), float, adds_up=True)


def memory() -> Case:
    meter = FakeMeter()
    return Case(Memory(meter), lambda n: setattr(meter, "peak", max(meter.peak, n)), lambda r: r.peak_bytes, False)


def tokens() -> Case:
    stream = TokenStream()

    def stimulate(n: int) -> None:
        row = torch.ones(1, n, dtype=torch.long)
        stream.consume(row, row, row)

    return Case(stream, stimulate, lambda r: r.tokens, adds_up=True)


def energy() -> Case:
    joules = [100.0]
    energy = Energy(lambda: joules[0])
    return Case(energy, lambda n: joules.__setitem__(0, joules[0] + 3600 * n), float, adds_up=True)


@pytest.fixture(params=[clock, memory, tokens, energy], ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


def amounts(case: Case) -> dict[str, float]:
    return {phase: case.amount(reading) for phase, reading in case.instrument.read().items()}


def test_it_has_the_shape(case: Case) -> None:
    assert isinstance(case.instrument, Instrument)


def test_each_phase_gets_what_happened_in_it(case: Case) -> None:
    case.instrument.enter("a")
    case.stimulate(5)
    case.instrument.enter("b")
    case.stimulate(2)
    assert amounts(case) == {"a": 5, "b": 2}
    assert list(case.instrument.read()) == ["a", "b"]


def test_nothing_is_measured_before_the_first_phase_and_after_the_stop(case: Case) -> None:
    assert case.instrument.read() == {}
    case.stimulate(7)
    case.instrument.stop()
    case.instrument.enter("a")
    case.stimulate(3)
    case.instrument.stop()
    case.stimulate(9)
    assert amounts(case) == {"a": 3}


def test_a_phase_entered_again_goes_on(case: Case) -> None:
    for phase, amount in (("a", 4), ("b", 1), ("a", 3)):
        case.instrument.enter(phase)
        case.stimulate(amount)
    assert amounts(case) == {"a": 7 if case.adds_up else 4, "b": 1}
    assert list(case.instrument.read()) == ["a", "b"]


def test_reading_disturbs_nothing(case: Case) -> None:
    case.instrument.enter("a")
    case.stimulate(2)
    first = case.instrument.read()
    first.clear()
    assert amounts(case) == {"a": 2}
    case.stimulate(4)
    assert amounts(case) == {"a": 6 if case.adds_up else 4}
