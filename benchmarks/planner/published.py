"""Estimates of runs that others published, beside what they measured, and claims that the planner judges. Nothing runs.

>>> print(table())
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from bench.planner.advice import GIB, planned_runs, step_of
from bench.planner.memory import Terms, estimate
from bench.planner.time import done_costs, needed_flops
from bench.stats.claims import Part, predicted, read_claims

FILE = Path(__file__).with_name("published.yaml")
RUNS = ["source", "model", "method", "setup", "micro-batch", "compared by", "estimated, GiB", "published", "ratio",
        "tokens/s", "of the data sheet", "used"]  # fmt: skip
CLAIMS = ["claim", "check", "estimated", "verdict"]


@dataclass(frozen=True)
class Published:
    """A run of `published.yaml`, and what the planner says of it.

    Attributes:
        row: as it stands in the file.
        loss_in_chunks: else the logits of all positions were kept.
        terms: of its step, by the planner.
        level: what its peak is compared by: what was allocated, reserved, or used on the device; None: no peak.
        utilization: FLOPs that were done a second / the data sheet's; None: no speed, or no data sheet.
    """

    row: dict[str, Any]
    loss_in_chunks: bool
    terms: Terms
    utilization: float | None

    @property
    def level(self) -> str | None:
        """Beside logits of all positions the allocator reserves what the harness never would: not compared."""
        order = ("device", "reserved", "allocated") if self.loss_in_chunks else ("allocated", "reserved")
        return next((level for level in order if f"{level}_gib" in self.row), None)

    @property
    def estimated_bytes(self) -> int:
        """At its level."""
        beside = {"allocated": self.terms.process + self.terms.allocator, "reserved": self.terms.process}
        return self.terms.total - beside.get(self.level or "", 0)

    @property
    def ratio(self) -> float | None:
        """Published / estimated."""
        return None if self.level is None else self.row[f"{self.level}_gib"] * GIB / self.estimated_bytes

    @property
    def is_alike(self) -> bool:
        """Whether the harness would do the same work, so that the run tells how good the planner is."""
        return "differs" not in self.row

    @property
    def allocator_share(self) -> float | None:
        """What is reserved beyond what is allocated, as a part of what comes and goes."""
        if not {"allocated_gib", "device_gib"} <= self.row.keys():
            return None
        moving = sum(getattr(self.terms, name) for name in ("gradients", "activations", "casts", "logits", "workspace"))
        return ((self.row["device_gib"] - self.row["allocated_gib"]) * GIB - self.terms.process) / moving


def published() -> Iterator[Published]:
    """Every run of the file."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for row in content["runs"]:
        source = content["sources"][row["source"]]
        adapter = [] if row["method"].startswith("full") else source["adapter"]
        rows = row["micro_batch"]
        given = [*content["models"][row["model"]], *content["methods"][row["method"]], *source["settings"], *adapter,
                 *row.get("more", []), f"train.micro_batch={rows}", f"train.batch_size={max(8, rows)}"]  # fmt: skip
        overrides = {text.partition("=")[0]: text for text in given}  # the last one counts
        ((config, options, machine),) = planned_runs(list(overrides.values()))
        chunks = row.get("loss", source["loss"]) == "chunks"
        step = replace(step_of(config, options, machine), loss_in_chunks=chunks)
        length = options.tokens_per_example or config.train.max_length
        pairs = length * (length + 1) // 2
        costs = done_costs(config, step.architecture)
        done = needed_flops(costs, tokens=length, supervised_tokens=length, attended_pairs=pairs) / length
        speed, tflops = row.get("tokens_per_second"), config.hardware.bf16_tflops
        utilization = None if speed is None or tflops is None else speed * done / (tflops * 1e12)
        yield Published(row, chunks, estimate(step), utilization)


def table() -> str:
    """Runs: peak in GiB and speed, estimated and published. Claims: what they say, and the estimate."""
    found, content = list(published()), yaml.safe_load(FILE.read_text(encoding="utf-8"))
    aligned = ["left"] * 4 + ["right"] * (len(RUNS) - 5) + ["left"]
    runs = tabulate(map(_row, found), RUNS, "github", disable_numparse=True, colalign=aligned)
    notes = [f"- {name}: {source['title']}" for name, source in content["sources"].items()]
    verdicts = [predicted(claim) for claim in read_claims() if claim.planner]
    claims = [[v.claim.id, part.check, _value(part), v.word] for v in verdicts for part in v.parts]
    return "\n".join([runs, "", *notes, "", tabulate(claims, CLAIMS, "github", disable_numparse=True)])


def _value(part: Part) -> str:
    return f"{part.value:,.4g}" + ("" if part.low == part.high else f" ({part.low:,.4g} to {part.high:,.4g})")


def _row(run: Published) -> list[str]:
    row = run.row
    peak = ["-"] * 4
    if run.level is not None and run.ratio is not None:
        gib = (run.estimated_bytes / GIB, row[f"{run.level}_gib"])
        peak = [run.level, *(f"{size:.1f}" for size in gib), f"{run.ratio:.2f}"]
    speed = ["-", "-"]
    if "tokens_per_second" in row:
        speed = [f"{row['tokens_per_second']:,.0f}", "-" if run.utilization is None else f"{run.utilization:.2f}"]
    names = [row["source"], row["model"], row["method"], str(row.get("setup", "")), str(row["micro_batch"])]
    return [*names, *peak, *speed, row.get("differs", "yes")]
