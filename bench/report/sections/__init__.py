"""One file a section. Each has a function `section(group) -> Section | None`; `SECTIONS` is their order in the report.

`answer` comes first: its two sections take the reader's limits too. To add a section: write its file and name it here.
"""

from bench.report.sections import (
    claims,
    data,
    examples,
    fairness,
    forgetting,
    frontier,
    learning,
    memory,
    quality,
    rates,
    serving,
    speed,
    weights,
)

_ORDER = (
    quality,
    learning,
    memory,
    speed,
    forgetting,
    frontier,
    weights,
    serving,
    claims,
    rates,
    data,
    examples,
    fairness,
)
SECTIONS = tuple(module.section for module in _ORDER)
