"""Full fine-tuning, LoRA or QLoRA? Identical runs, measured, compared and reported.

`from bench import load` reads a sweep's folder into DataFrames; it is imported only when asked for, so that
`import bench` costs nothing.

    >>> sweep = load("results/default")
    >>> sweep.runs[["method", "seed", "train_peak_bytes"]]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report.load import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from bench.report.load import load

        return load
    raise AttributeError(f"module 'bench' has no attribute {name!r}; it has: load")
