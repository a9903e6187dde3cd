"""One file a section. Each has a function `section(group) -> Section | None`; `SECTIONS` is their order in the report.

To add a section: write its file and name it here.
"""

from bench.report.next.sections import answer, change, examples, fairness, forgetting, learning, memory, quality, speed

_ORDER = (answer, change, quality, learning, memory, speed, forgetting, examples, fairness)
SECTIONS = tuple(module.section for module in _ORDER)
