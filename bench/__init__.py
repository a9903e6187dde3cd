"""Full fine-tuning, LoRA or QLoRA? Identical runs, measured, compared, and decided between.

`load` reads a sweep's folder into DataFrames, `decide` says which method to use. Both are imported only when asked
for, so that `import bench` costs nothing.

    >>> from bench import decide, load
    >>> sweep = load("results/default")
    >>> sweep.runs[["arm", "seed", "peak_memory_bytes"]]
    >>> decide(sweep).sentence
    'Use lora.'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.stats.decide import decide
    from bench.stats.frames import load

__all__ = ["decide", "load"]
_MODULES = {"load": "bench.stats.frames", "decide": "bench.stats.decide"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bench' has no attribute {name!r}; it has: {', '.join(_MODULES)}")
    return getattr(importlib.import_module(_MODULES[name]), name)
