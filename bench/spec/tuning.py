"""The search of a learning rate and what it found: `conf/tune.yaml` in, `rates.yaml` out.

A `Tuning` holds for one method with one model, task and budget, named by `identity.tuning_key`. A file of them is
written by `python -m bench.tune`, read by `python -m bench ... rates=FILE`, and copied beside the runs that used it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bench.spec.config import Fraction, PositiveInt, suggest
from bench.spec.failure import ConfigurationError

RATES_VERSION: Literal[1] = 1
_STRICT = ConfigDict(extra="forbid")
Rate = Annotated[float, Field(gt=0, le=1)]
Edge = Literal["low", "high"]


@dataclass(frozen=True, config=_STRICT)
class TuneConfig:
    """How rates are searched; the same for every method. The settings are explained in `conf/tune.yaml`."""

    points: PositiveInt = 1
    factor: Annotated[float, Field(gt=1)] = 2.5
    max_points: PositiveInt = 5
    rates: Annotated[list[Rate], Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1000
    max_steps: PositiveInt | None = None
    heldout_points: PositiveInt = 2
    hopeless_below: Fraction = 0.5


@dataclass(frozen=True, config=_STRICT)
class Trial:
    """One training run of the search."""

    learning_rate: Rate
    loss: float | None  # held-out, nats per token, at its last point; None: not finite
    steps: int  # optimizer steps done
    stopped_early: str | None  # why; None: it ran to its end
    seconds: float  # wall time, start of the process included
    run_id: str


@dataclass(frozen=True, config=_STRICT)
class Tuning:
    """The search for one method, model, task and budget."""

    key: str  # identity.tuning_key of the runs that it holds for
    method: str
    model: str
    task: str
    learning_rate: Rate | None  # the chosen one; None: no trial ended with a finite loss
    at_edge: Edge | None  # the chosen rate is the lowest or the highest that was tried
    trials: list[Trial]  # by learning rate
    seed: int
    max_steps: int | None  # of a trial; None: as many as a run of the sweep
    data_fingerprint: str | None  # of the prepared data (`DataSummary.fingerprint`)
    command: str
    git_commit: str | None
    git_dirty: bool | None
    finished_at: str  # ISO 8601, UTC


@dataclass(frozen=True, config=_STRICT)
class Rates:
    """The content of a rates file."""

    tunings: list[Tuning]
    schema_version: Literal[1] = RATES_VERSION


def tune_config(mapping: dict[str, Any]) -> TuneConfig:
    """Check the settings of a search.

    Raises:
        ConfigurationError: with every mistake found.
    """
    try:
        return TypeAdapter(TuneConfig).validate_python(mapping)
    except ValidationError as error:
        raise ConfigurationError([_explain(e) for e in error.errors(include_url=False)]) from None


def _explain(error: Any) -> str:
    name = str(error["loc"][0])
    if error["type"] == "unexpected_keyword_argument":
        return f"tune.{name}: no such setting{suggest(name, [f.name for f in fields(TuneConfig)])}"
    return f"tune.{name}: {error['msg'][0].lower()}{error['msg'][1:]}; given {error['input']!r}"
