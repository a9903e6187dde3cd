"""One file a section. Each has a function `section(group) -> Section | None`; `SECTIONS` is their order in the report.

`answer` comes first: its two sections take the reader's limits too. To add a section: write its file and name it here.
"""

from importlib import import_module

_ORDER = ("quality", "learning", "memory", "speed", "forgetting", "frontier", "weights", "serving", "claims", "rates",
          "data", "examples", "fairness")  # fmt: skip
SECTIONS = tuple(import_module(f"{__name__}.{name}").section for name in _ORDER)
