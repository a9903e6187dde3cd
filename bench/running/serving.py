"""Serving, measured for a run that is finished: right after it, or later for a sweep that never asked for it.

Serving changes nothing of a run, and a failure of it takes nothing from the run: the record keeps its status `ok` and
says in `serve_failure` why serving is missing. Rounds after the first are processes of their own that measure the
latency alone; the result holds the answers of all of them.
"""

from __future__ import annotations

from dataclasses import replace

from bench.running import store
from bench.running.launch import Watch, run_stage
from bench.running.provenance import provenance
from bench.spec.config import RunConfig
from bench.spec.layout import artifact_folder, run_folder, write_atomic
from bench.spec.record import Failure, PhaseMemory, Record, ServeResult, from_json, to_json
from bench.spec.serving import ServedForm


def with_serving(config: RunConfig, record: Record, watch: Watch) -> Record:
    """The record of a finished run with what serving it costs, or with why that is missing. Its plan is in its folder.

    Call while holding the run (`store.claim`).
    """
    if missing := _missing_weights(config, record):
        return replace(record, serve_failure=missing)
    folder = run_folder(config)
    results: list[ServeResult] = []
    seconds = 0.0
    for number in range(config.serve.rounds):
        write_atomic(folder / "plan.json", to_json(config if number == 0 else _latency_alone(config)))
        outcome = run_stage(folder, "serve", config.hardware.stage_timeout_seconds, watch)
        seconds += outcome.wall_seconds
        if outcome.failure is not None:
            return replace(record, serve_failure=outcome.failure)
        results.append(from_json(ServeResult, (folder / "serve.json").read_bytes()))
    result = replace(joined(results), provenance=provenance())
    for name, content in (("plan.json", to_json(config)), ("serve.json", to_json(result))):
        write_atomic(folder / name, content)
    wall = record.stage_wall_seconds | {"serve": seconds}
    return replace(record, serve=result, serve_failure=None, stage_wall_seconds=wall)


def _latency_alone(config: RunConfig) -> RunConfig:
    return replace(config, serve=replace(config.serve, fidelity_examples=0, adapters=[]))


def joined(rounds: list[ServeResult]) -> ServeResult:
    """The first round's result with the latency of the others."""
    first = rounds[0]
    peaks: dict[str, PhaseMemory] = {}
    for entry in (entry for result in rounds for entry in result.memory):
        before = peaks.get(entry.phase)
        if before is None or (entry.peak_bytes or 0) > (before.peak_bytes or 0):
            peaks[entry.phase] = entry
    return replace(
        first,
        forms=[_with_loads(form, rounds) for form in first.forms],
        generations=[
            replace(generation, round=number)
            for number, result in enumerate(rounds, start=1)
            for generation in result.generations
        ],
        memory=list(peaks.values()),
        later_environments=[result.environment for result in rounds[1:]],
    )


def _with_loads(form: ServedForm, rounds: list[ServeResult]) -> ServedForm:
    loads = [s for result in rounds for f in result.forms if f.form == form.form for s in f.load_seconds or ()]
    return replace(form, load_seconds=loads or None)


def _missing_weights(config: RunConfig, record: Record) -> Failure | None:
    """Why a run that was trained cannot be served any more."""
    if record.train is None or store.weights_are_whole(artifact_folder(config), record.train.checkpoint_bytes):
        return None
    folder = run_folder(config)
    return Failure(
        stage="serve",
        phase="weights",
        message=f"nothing to serve: the weights of this run are no longer whole in {artifact_folder(config)}",
        next_step=f"Put them back; or delete {folder / 'record.json'} and give the same command again: it trains anew.",
        exit_code=None,
        log_tail="",
    )
