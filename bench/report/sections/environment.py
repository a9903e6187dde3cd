"""About the whole sweep: runs that failed, machines and versions, the commands that made it, definitions.

>>> [found.title for found in sections(sweep)]
['Failures', 'Environment', 'Definitions']
"""

from __future__ import annotations

from typing import Any

from bench.config import flat
from bench.outcome import Failure
from bench.record import Record
from bench.report.section import Section, Table, gib
from bench.stats.frames import Sweep

_LOG_CHARACTERS = 2000
_STAGE_FACTS = {  # of the first stage's environment
    "device": "device",
    "compute dtype": "compute_dtype",
    "attention": "attention",
    "compiled": "compiled",
    "threads": "threads",
    "usable processors": "cpu_affinity",
}
_NOT_FACTS = ("command", "load_average_1min")
DEFINITIONS = (  # term, meaning; of what no section's note explains
    ("tolerance", "shortfall in score that is accepted for a cheaper method: 5% of the best score, unless the task or "
                  "the user states another"),
    ("cheapest", "within a tenth of the least memory, of these the least training time, then the fewest bytes to keep"),
    ("interval", "95%, over seeds and test examples; with one seed, over the examples alone"),
    ("held-out loss", "on the validation split: sum of token losses / supervised tokens"),
)  # fmt: skip


def sections(sweep: Sweep) -> list[Section]:
    """Failures (opened when there are any), environment, definitions."""
    failures = [*(_failure(record) for record in sweep.records if record.status != "ok")]
    failures += [_failure(record, record.serve_failure) for record in sweep.records if record.serve_failure]
    failures += [Section(p.run, lead=f"{p.file}: {p.reason}. Next step: {p.next_step}") for p in sweep.problems]
    commands = dict.fromkeys(str(record.provenance.get("command", "")) for record in sweep.records)
    facts = Table(["fact", "value"], _facts(sweep), text_columns=2)
    failed = Section("Failures", lead="" if failures else "None.", parts=failures, fold=not failures)
    machines = Section("Environment", table=facts, code="\n".join(filter(None, commands)), fold=True)
    terms = Table(["term", "meaning"], DEFINITIONS, text_columns=2)
    return [failed, machines, Section("Definitions", table=terms, fold=True)]


def _failure(record: Record, failure: Failure | None = None) -> Section:
    failure = failure or record.failure
    if failure is None:
        return Section(record.run_id, lead=f"{record.status}; no details were recorded.")
    where = failure.stage + (f", {failure.phase}" if failure.phase and failure.phase != failure.stage else "")
    code = f" (exit code {failure.exit_code})" if failure.exit_code is not None else ""
    what = str(record.status) if failure is record.failure else "serving failed"
    text = f"{what} in {where}{code}: {failure.message}. "
    text += f"Last known peak: {gib(failure.last_known_peak_bytes)} GiB. " if failure.last_known_peak_bytes else ""
    log = failure.log_tail[-_LOG_CHARACTERS:]
    return Section(record.run_id, lead=f"{text}Next step: {failure.next_step}", code=log)


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    """One row a fact; where runs differ, all values."""
    found: dict[str, dict[str, None]] = {}
    for record in sweep.records:
        facts: dict[str, Any] = {k: v for k, v in flat(record.provenance).items() if k not in _NOT_FACTS}
        if memory := facts.pop("memory_bytes", None):
            facts["memory, GiB"] = gib(memory)
        if stage := record.train or record.evaluate or record.regression:
            facts |= {name: getattr(stage.environment, field) for name, field in _STAGE_FACTS.items()}
        if record.data:
            facts[f"data of {record.task}"] = f"{record.data.source}; fingerprint {record.data.fingerprint[:12]}"
        for name, value in facts.items():
            found.setdefault(name, {})["-" if value is None else str(value)] = None
    return [(name, ", ".join(values)) for name, values in found.items()]
