"""Estimates of runs that others published, beside what they measured. Nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from bench.planning.plans import Plan, plans

FILE = Path(__file__).with_name("published.yaml")
GIB, GB = 2**30, 10**9


def table() -> str:
    """One row a run: peak in GiB and tokens a second, estimated and published."""
    headers = [
        "run",
        "source",
        "peak: estimated, GiB",
        "published",
        "error",
        "tokens/s: estimated",
        "published",
        "inside",
    ]
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    rows = [_row(run, _planned(run)) for run in content["runs"]]
    aligned = ["left", "left", *["right"] * (len(headers) - 2)]
    notes = [f"{name}: {title}" for name, title in content["sources"].items()]
    notes += [f"{run['name']}: {run['differs']}" for run in content["runs"]]
    shown = tabulate(rows, headers, "github", disable_numparse=True, colalign=aligned)
    return "\n".join([shown, "", *(f"- {note}" for note in notes)])


def _planned(run: dict[str, Any]) -> Plan:
    (plan,) = plans([*run["overrides"], *run["more"]])
    return plan


def _row(run: dict[str, Any], plan: Plan) -> list[str]:
    published = run["peak_gib"] * GIB if "peak_gib" in run else run["peak_gb"] * GB
    error = f"{100 * (plan.total_bytes / published - 1):+.0f}%"
    speed, range_ = run.get("tokens_per_second"), plan.duration.tokens_per_second
    cells = ["-", "-", "-"]
    if speed is not None and range_ is not None:
        low, high = range_
        inside = (
            "yes"
            if low <= speed <= high
            else f"{speed / low:.2f} of the low end"
            if speed < low
            else (f"{speed / high:.2f} of the high end")
        )
        cells = [f"{low:.0f}-{high:.0f}", str(speed), inside]
    return [run["name"], run["source"], f"{plan.total_bytes / GIB:.1f}", f"{published / GIB:.1f}", error, *cells]
