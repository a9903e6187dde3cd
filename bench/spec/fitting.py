"""The largest micro-batch that fits a memory budget, and how it was found: `train.micro_batch=auto`.

fit.json    one `Fit`, written by the parent when the search is over; the training stage reads it
"""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Probe:
    """Two steps of training in a process of its own, at the longest examples of the data."""

    micro_batch: int
    fits: bool
    peak_bytes: int | None  # of the phase train, as `PhaseMemory`; of an "oom": the highest that was known
    how: str  # "measured", or "oom": memory ran out


@dataclass(frozen=True, config=_STRICT)
class Fit:
    """The outcome of a search."""

    micro_batch: int  # the largest that fitted
    budget_bytes: int
    probes: tuple[Probe, ...] = ()  # in the order of trying
    is_largest: bool = True  # False: the search ended at its last probe, with a larger one untried
    key: str = ""  # equal for runs that one search holds for: `identity.fit_key`
    searched_by: str = ""  # the run id that the probes were made for


@dataclass(frozen=True, config=_STRICT)
class ProbeResult:
    """What a probing child says."""

    peak_bytes: int | None
    budget_bytes: int
