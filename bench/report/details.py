"""The tables for who digs deeper: speed, memory by phase, wall time, samples, environment, failures.

>>> print(speed_table(group))
| method | tokens/s | supervised tokens/s | ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from bench.config import flat
from bench.record import PhaseMemory, Record, Status
from bench.report.answer import Group, busy_mark, column, mean
from bench.report.format import (
    UNKNOWN,
    cell,
    fenced,
    gib,
    known,
    mean_and_range,
    minutes,
    number,
    percent,
    shortened,
    table,
)
from bench.report.load import Problem, Sweep

_SAMPLES_SHOWN, _PROMPT_CHARACTERS, _ANSWER_CHARACTERS, _LOG_CHARACTERS = 4, 500, 600, 2000
_SPEEDS = [  # header, column of runs, decimals
    ("tokens/s", "train_tokens_per_second", 0),
    ("supervised tokens/s", "supervised_tokens_per_second", 0),
    ("positions/s", "positions_per_second", 0),
    ("step median, s", "step_seconds_median", 3),
    ("p90, s", "step_seconds_p90", 3),
    ("p99, s", "step_seconds_p99", 3),
    ("compiling, s", "compile_seconds", 1),
    ("MFU", "mfu", 2),
    ("energy, Wh", "energy_wh", 2),
    ("cost, USD", "cost_usd", 2),
    ("generation, tokens/s", "generate_tokens_per_second", 0),
]


def speed_table(group: Group) -> str:
    """One row a trained arm; means over seeds, with the range where there are several."""
    arms = [arm for arm in group.arms if any(column(_runs(group, arm), name) for _, name, _ in _SPEEDS)]
    rows = [
        [
            cell(arm) + busy_mark(_runs(group, arm), "train", "evaluate"),
            *(mean_and_range(column(_runs(group, arm), name), digits) for _, name, digits in _SPEEDS),
            _other_load(_runs(group, arm)),
        ]
        for arm in arms
    ]
    return table(["method", *(header for header, *_ in _SPEEDS), "other load"], rows) if rows else ""


def _other_load(runs: pd.DataFrame) -> str:
    """Processors lost to others, the most of the seeds."""
    taken = runs.reindex(columns=["other_cpu_cores", "stolen_cpu_cores"]).astype(float)
    return number(taken.sum(axis=1, min_count=1).max(), 2)


def memory_table(group: Group) -> str:
    """One row an arm and phase, or part of a training step; the highest of the seeds."""
    phases: dict[tuple[str, str, str], list[PhaseMemory]] = {}
    arm_of = group.runs.set_index("run_id")["arm"]
    for record in group.records:
        arm = str(arm_of[record.run_id])
        for name in ("train", "evaluate", "regression"):
            stage = getattr(record, name)
            for entry in stage.memory if stage else ():
                phases.setdefault((arm, name, entry.phase), []).append(entry)
        for entry in record.train.step_memory if record.train else ():
            phases.setdefault((arm, "train", f"one step: {entry.phase}"), []).append(entry)
    ordered = sorted(phases.items(), key=lambda item: group.arms.index(item[0][0]))
    names = ("peak_bytes", "above_start_bytes", "peak_reserved_bytes", "device_used_bytes", "anonymous_bytes")
    rows = [
        [cell(arm), cell(stage), cell(phase), *(gib(_highest(entries, name)) for name in names)]
        for (arm, stage, phase), entries in ordered
    ]
    headers = ["method", "stage", "phase", "peak", "above start", "reserved", "device (NVML)", "anonymous at end"]
    return table(headers, rows, text_columns=3) if rows else ""


def _highest(entries: Sequence[PhaseMemory], name: str) -> int | None:
    return max((value for entry in entries if (value := getattr(entry, name)) is not None), default=None)


def wall_time_table(group: Group) -> str:
    """Where the wall time of an arm went, mean over its runs: named spans, never differences."""
    spans = {record.run_id: _spans(record) for record in group.records}
    names = list(dict.fromkeys(name for values in spans.values() for name in values))
    rows = []
    for arm in group.arms:
        runs = _runs(group, arm)
        of_arm = [spans[run] for run in runs["run_id"]]
        values = {name: mean([entry[name] for entry in of_arm if name in entry]) for name in names}
        wall = mean(column(runs, "wall_seconds"))
        work = sum(v for name, v in values.items() if v is not None and not name.endswith(_OVERHEAD))
        share = percent(work / wall, 0) if wall and work else UNKNOWN
        rows.append([cell(arm), minutes(wall), share, *(number(values[name], 1) for name in names)])
    return table(["method", "wall, min", "work", *(f"{cell(name)}, s" for name in names)], rows) if rows else ""


_OVERHEAD = (" import", " load", " save", " prepare", " compile")


def _spans(record: Record) -> dict[str, float]:
    stages = [("train", record.train), ("evaluate", record.evaluate), ("regression", record.regression)]
    return {f"{name} {span}": value for name, stage in stages if stage for span, value in stage.spans_seconds.items()}


def _runs(group: Group, arm: str) -> pd.DataFrame:
    return group.runs[group.runs["arm"] == arm]


def sample_blocks(group: Group) -> str:
    """The test examples on which the arms' primary scores differ most, each arm's answer under them."""
    primary = group.findings.primary
    if primary is None:
        return ""
    first = {arm: runs[0].run_id for arm, runs in group.findings.arms.items()}
    rows = group.sweep.samples[group.sweep.samples["run_id"].isin(first.values())]
    score = f"score_{primary.name}"
    scores = rows.pivot_table(index="example_id", columns="run_id", values=score, sort=False)
    spread = (scores.max(axis=1) - scores.min(axis=1)).sort_values(ascending=False, kind="stable")
    blocks = []
    for example in spread.index[:_SAMPLES_SHOWN]:
        chosen = rows[rows["example_id"] == example].set_index("run_id")
        blocks.append(_sample_block(str(example), chosen, first, score, primary.name))
    return "\n\n".join(blocks)


def _sample_block(example: str, chosen: pd.DataFrame, first: dict[str, str], score: str, metric: str) -> str:
    any_run = chosen.iloc[0]
    parts = [
        f"**Example {cell(example)}.** Prompt:",
        fenced(shortened(str(any_run["prompt"]), _PROMPT_CHARACTERS)),
        "Reference:",
        fenced(shortened(str(any_run["reference"]), _ANSWER_CHARACTERS)),
    ]
    for arm, run in first.items():
        if run in chosen.index:
            sample = chosen.loc[run]
            cut = ", cut at the length limit" if bool(sample["cut_at_limit"]) else ""
            parts.append(f"{cell(arm)} ({metric} {number(sample[score])}{cut}):")
            parts.append(fenced(shortened(str(sample["prediction"]), _ANSWER_CHARACTERS)))
    return "\n\n".join(parts)


def environment_table(sweep: Sweep) -> str:
    """One row a fact; several values are shown one after the other."""
    found: dict[str, dict[str, None]] = {}
    for record in sweep.records:
        facts: dict[str, Any] = {k: v for k, v in flat(record.provenance).items() if k not in _NOT_FACTS}
        stage = record.train or record.evaluate or record.regression
        if stage:
            environment = stage.environment
            facts |= {"device": environment.device, "compute dtype": environment.compute_dtype}
            facts |= {
                "attention": environment.attention,
                "compiled": environment.compiled,
                "threads": environment.threads,
                "usable processors": environment.cpu_affinity,
                "CPU governor": environment.cpu_governor,
            }
        if record.data:
            facts |= {f"data of {record.task}": f"{record.data.source}; fingerprint {record.data.fingerprint[:12]}"}
        for name, value in facts.items():
            if name.endswith("_bytes") and known(value):
                name, value = f"{name.removesuffix('_bytes')}, GiB", gib(value)
            found.setdefault(name, {})[UNKNOWN if value is None else str(value)] = None
    rows = [[cell(name), " / ".join(cell(value) for value in values)] for name, values in found.items()]
    return table(["fact", "value"], rows, text_columns=2) if rows else ""


_NOT_FACTS = ("command", "load_average_1min")


def commands(sweep: Sweep) -> str:
    """The commands that made the runs, each once."""
    lines = dict.fromkeys(str(record.provenance.get("command", "")) for record in sweep.records)
    return fenced("\n".join(line for line in lines if line) or UNKNOWN, "sh")


def failures(sweep: Sweep) -> list[str]:
    """One Markdown block a run that failed, could not be read or lacks a part; none when all is well."""
    blocks = [_failure_block(record) for record in sweep.records if record.status != "ok"]
    unserved = [replace(r, status=Status.ERROR, failure=r.serve_failure) for r in sweep.records if r.serve_failure]
    blocks += map(_failure_block, unserved)
    return blocks + [_problem_block(problem) for problem in sweep.problems]


def _failure_block(record: Record) -> str:
    failure = record.failure
    if failure is None:
        return f"**{cell(record.run_id)}**: {record.status}; no details were recorded."
    where = failure.stage + (f", {failure.phase}" if failure.phase and failure.phase != failure.stage else "")
    known_peak = failure.last_known_peak_bytes
    peak = f" Last known peak: {gib(known_peak)} GiB." if known(known_peak) else ""
    code = f" (exit code {failure.exit_code})" if failure.exit_code is not None else ""
    text = f"**{cell(record.run_id)}**: {record.status} in {cell(where)}{code}: {cell(failure.message)}.{peak}"
    text += f" Next step: {cell(failure.next_step)}"
    return f"{text}\n\n{fenced(failure.log_tail[-_LOG_CHARACTERS:])}" if failure.log_tail.strip() else text


def _problem_block(problem: Problem) -> str:
    return (
        f"**{cell(problem.run)}**, {cell(problem.file)}: {cell(problem.reason)}. Next step: {cell(problem.next_step)}"
    )
