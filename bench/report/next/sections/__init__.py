"""One file a section. Each has a function `section(group) -> Section | None`; `SECTIONS` is their order in the report.

To add a section: write its file and name it here.
"""

from bench.report.next.sections import answer, change, examples, fairness, learning, memory, speed

SECTIONS = tuple(module.section for module in (answer, change, learning, memory, speed, examples, fairness))
