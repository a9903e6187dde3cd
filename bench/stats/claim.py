"""A public claim about the methods, in a form that a sweep can test. `docs/claims.md` explains it to a person.

A claim is a sentence with one or more checks; it holds when all of them hold. A check names a quantity, the arms that
it is taken of, and what is expected of it.

    >>> Claim("speed", "QLoRA trains 15 to 25% slower than LoRA.", checks=[
    ...     Check("tokens_per_second", of="qlora", against="lora", form="reduction", expect=(0.15, 0.25))])
"""

from __future__ import annotations

import re
from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")
Family = Literal["base", "base_4bit", "full", "lora", "qlora"]
Form = Literal["value", "ratio", "reduction", "difference", "relative_difference"]
Quantity = Literal[
    "peak_memory_gb", "static_bytes_per_parameter", "base_weights_gb", "bits_per_quantized_parameter",
    "tokens_per_second", "step_seconds", "seconds_to_target_loss_at_equal_memory",
    "trainable_share", "trainable_parameters", "trainable_dtype", "checkpoint_mb", "cost_usd",
    "score", "test_loss", "best_learning_rate", "gradient_spike_share",
    "regression_drop", "instructions_drop",
    "merge_logit_difference", "merged_latency_ratio", "unmerged_latency_ratio", "merged_size_ratio",
    "adapter_swap_seconds",
]  # fmt: skip


def _as_arm(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


Range = Annotated[tuple[float | None, float | None], BeforeValidator(_as_range)]  # both ends belong to it; null: open


@dataclass(frozen=True, config=_STRICT)
class Arm:
    """Which runs are meant: a method, and the settings that the claim is about. A setting not named is not asked for.

    `lora` alone is short for `{method: lora}`.
    """

    method: Family
    rank: Range | None = None  # 8, or [128, null] for 128 and above
    target_modules: str | list[str] | None = None
    scheme: Literal["nf4", "fp4", "int8"] | None = None
    double_quantization: bool | None = None
    weights_dtype: Literal["bfloat16", "float32"] | None = None

    @property
    def named(self) -> dict[str, Any]:
        """The settings that the claim is about."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "method"}
        return {name: value for name, value in values.items() if value is not None}


ArmLike = Annotated[Arm, BeforeValidator(_as_arm)]


@dataclass(frozen=True, config=_STRICT)
class Check:
    """One quantity and what is expected of it: exactly one of `order`, `expect`, `above`, `below`, `one_of`."""

    quantity: Quantity
    of: ArmLike | None = None
    against: ArmLike | None = None
    form: Form = "value"  # of and against: ratio of/against, reduction 1 - ratio, difference of - against
    order: str | None = None  # "full > lora > qlora", "full < lora, qlora"; takes the place of `of` and `against`
    expect: Range | None = None
    above: float | None = None
    below: float | None = None
    one_of: list[str] | None = None  # for words, such as a dtype
    by: Literal["interval", "equivalence", "no_difference"] = "interval"
    metric: str | None = None  # of `score`; null: the task's first metric
    same_trainable: bool = False  # the two arms train equally many parameters, to 5%

    def pairs(self) -> list[tuple[Family, str, Family]]:
        """The pairs of an `order`: (left, ">" or "<", right) of neighbours; a comma sets alternatives side by side.

        >>> Check("peak_memory_gb", order="full > lora, qlora").pairs()
        [('full', '>', 'lora'), ('full', '>', 'qlora')]
        """
        parts = re.split(r"([<>])", self.order or "")
        terms = [[name.strip() for name in part.split(",")] for part in parts[0::2]]
        steps = zip(terms, parts[1::2], terms[1:], strict=False)
        return [(a, sign, b) for left, sign, right in steps for a in left for b in right]  # type: ignore[misc]


@dataclass(frozen=True, config=_STRICT)
class Needs:
    """What a sweep must be for the claim to say anything about it."""

    parameters: Range | None = None  # of the base model
    device: Literal["cpu", "cuda"] | None = None


@dataclass(frozen=True, config=_STRICT)
class Claim:
    """One statement, in our words."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    says: str
    checks: Annotated[list[Check], Field(min_length=1)]
    needs: Needs = field(default_factory=Needs)
    contradicts: list[str] = field(default_factory=list)  # ids; said on one side, it counts for both
    reading: str = ""  # how we read a vague word, and what the check leaves out
    source: str = ""  # empty: that of the file


@dataclass(frozen=True, config=_STRICT)
class ClaimFile:
    """The claims of one source."""

    source: str  # its title, as a person would look it up
    claims: list[Claim]
