"""What is asked of the planner beside the run itself: `conf/plan.yaml` in, set with plan.NAME=VALUE."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bench.spec.config import PositiveInt, suggest
from bench.spec.failure import ConfigurationError

Strategy = Literal["ddp", "zero2", "zero3", "fsdp"]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PlanConfig:
    """The settings are explained in `conf/plan.yaml`."""

    memory_gib: list[_Positive] | None = None
    devices: PositiveInt = 1
    strategy: Strategy = "ddp"
    supervised_share: _Share = 1.0
    padded: bool = True
    tokens_per_example: PositiveInt | None = None
    examples: PositiveInt | None = None
    utilization: tuple[_Share, _Share] = (0.25, 0.5)


def plan_config(mapping: dict[str, Any]) -> PlanConfig:
    """Check the planner's settings. A single `memory_gib`, or several with commas, is a list.

    Raises:
        ConfigurationError: with every mistake found.
    """
    memory = mapping.get("memory_gib")
    if isinstance(memory, str):
        memory = memory.split(",")
    if memory is not None and not isinstance(memory, list):
        memory = [memory]
    try:
        return TypeAdapter(PlanConfig).validate_python(mapping | {"memory_gib": memory})
    except ValidationError as error:
        raise ConfigurationError([_explain(e) for e in error.errors(include_url=False)]) from None


def _explain(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        return f"plan.{name}: no such setting{suggest(name, [f.name for f in fields(PlanConfig)])}"
    return f"plan.{name}: {error['msg'][0].lower()}{error['msg'][1:]}; given {error['input']!r}"
