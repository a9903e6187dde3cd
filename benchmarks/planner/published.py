"""Estimates of runs that others published, beside what they measured, and claims that the planner judges. Nothing runs.

>>> print(table())
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from bench.planner.advice import GIB, plans
from bench.stats.claims import Part, predicted, read_claims

FILE = Path(__file__).with_name("published.yaml")
RUNS = ["run", "source", "peak: estimated, GiB", "published", "error", "tokens/s: estimated", "published", "inside"]
CLAIMS = ["claim", "check", "estimated", "verdict"]


def table() -> str:
    """Runs: peak in GiB and tokens a second, estimated and published. Claims: what they say, and the estimate."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    aligned = ["left", "left", *["right"] * (len(RUNS) - 2)]
    runs = tabulate(map(_row, content["runs"]), RUNS, "github", disable_numparse=True, colalign=aligned)
    notes = [f"- {name}: {title}" for name, title in content["sources"].items()]
    notes += [f"- {run['name']}: {run['differs']}" for run in content["runs"]]
    verdicts = [predicted(claim) for claim in read_claims() if claim.planner]
    claims = [[v.claim.id, part.check, _value(part), v.word] for v in verdicts for part in v.parts]
    return "\n".join([runs, "", *notes, "", tabulate(claims, CLAIMS, "github", disable_numparse=True)])


def _value(part: Part) -> str:
    return f"{part.value:,.4g}" + ("" if part.low == part.high else f" ({part.low:,.4g} to {part.high:,.4g})")


def _row(run: dict[str, Any]) -> list[str]:
    (plan,) = plans([*run["overrides"], *run["more"]])
    published = run["peak_gib"] * GIB if "peak_gib" in run else run["peak_gb"] * 1e9
    error = f"{100 * (plan.peak_memory_bytes / published - 1):+.0f}%"
    speed, cells = run.get("tokens_per_second"), ["-", "-", "-"]
    if speed is not None and plan.duration.tokens_per_second is not None:
        low, high = plan.duration.tokens_per_second
        below, above = f"{speed / low:.2f} of the low end", f"{speed / high:.2f} of the high end"
        cells = [f"{low:.0f}-{high:.0f}", str(speed), below if speed < low else above if speed > high else "yes"]
    return [run["name"], run["source"], f"{plan.peak_memory_bytes / GIB:.1f}", f"{published / GIB:.1f}", error, *cells]
