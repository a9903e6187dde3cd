"""Estimates of runs that others published, beside what they measured, and of statements of guides. Nothing runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from bench.planner.advice import Plan, plans
from bench.stats.claim_files import read_claims

FILE = Path(__file__).with_name("published.yaml")
GIB, GB = 2**30, 10**9
QUANTITIES: dict[str, Callable[[Plan], float]] = {
    "peak_gb": lambda plan: plan.total_bytes / GB,
    "weights_gb": lambda plan: plan.terms.weights / GB,
    "trainable": lambda plan: plan.parameters_trainable,
    "static_bytes_per_parameter": lambda plan: (
        (plan.terms.weights + plan.gradients_bytes + plan.terms.optimizer) / plan.parameters_base
    ),
}


def table() -> str:
    """Runs: peak in GiB and tokens a second, estimated and published. Statements: what they say, and the estimate."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
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
    rows = [_row(run, _planned(run)) for run in content["runs"]]
    aligned = ["left", "left", *["right"] * (len(headers) - 2)]
    notes = [f"{name}: {title}" for name, title in content["sources"].items()]
    notes += [f"{run['name']}: {run['differs']}" for run in content["runs"]]
    runs = tabulate(rows, headers, "github", disable_numparse=True, colalign=aligned)
    said = {claim.id: claim.says for claim in read_claims()}
    judged = [_judged(statement, said[statement["claim"]]) for statement in content["statements"]]
    statements = tabulate(judged, ["statement", "quantity", "said", "estimated"], "github", disable_numparse=True)
    return "\n".join([runs, "", *(f"- {note}" for note in notes), "", statements])


def _judged(statement: dict[str, Any], says: str) -> list[str]:
    value = QUANTITIES[statement["quantity"]](_planned(statement))
    low, high = ("" if bound is None else f"{bound:,.4g}" for bound in statement["expect"])
    return [" ".join(says.split()), statement["quantity"], f"{low} to {high}", f"{value:,.4g}"]


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
