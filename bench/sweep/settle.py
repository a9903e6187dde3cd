"""`bench settle`: an adaptive sweep, which runs only as much of a sweep as a sure answer needs.

The settings describe the whole sweep. Its runs are made as the rule of `stats.settling` asks for them: ordinary runs,
in results/<sweep>-settle, with fewer seeds and test examples at first. Runs that the last look leaves out (scored on
fewer examples, or of arms that were dropped) are named in settled.json, which the report reads. The same command goes
on where it was interrupted, since the same records lead to the same steps.

>>> settle_sweep(["method=full,lora,qlora", "seed=0,1,2"], Limits(), sure=0.95, budget_minutes=60, console=console)
(RunConfig(...), Settled(decided=True, arm='lora', ...))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.compose import compose
from bench.config import RunConfig
from bench.identity import data_folder, names_of_arms, run_folder, run_id, sweep_folder, write_atomic
from bench.mistakes import ConfigurationError
from bench.record import DataSummary, Record, to_json
from bench.stats.evidence import Evidence, evidence_of
from bench.stats.frames import SETTLED_FILE, LeftOut, groups, load
from bench.stats.limits import Limits
from bench.stats.settling import Design, Settled, first_design, settle
from bench.sweep.console import Console
from bench.sweep.execute import is_finished, read_file, read_record, run_one
from bench.sweep.fetching import prepare_all
from bench.sweep.tuning import keep_rates

MOST_SEEDS = "seed=0,1,2,3,4"  # where none are given
Arms = dict[str, dict[int, RunConfig]]  # arm -> seed -> its run; of an untrained arm, every seed's is the same


def settle_sweep(
    overrides: Sequence[str], limits: Limits, sure: float, budget_minutes: float, console: Console
) -> tuple[RunConfig, Settled]:
    """(a run of the sweep, how it ended); every run that was made has its record.

    Raises:
        ConfigurationError: mistakes in the settings, several models, tasks or suites, or fewer than two arms.
    """
    arms = compose_arms(overrides)
    some = next(iter(next(iter(arms.values())).values()))
    whole = [config for runs in arms.values() for config in runs.values()]
    unprepared = [config for config in whole if not (data_folder(config) / "summary.json").exists()]
    prepare_all(unprepared, console, aside=True)
    examples = some.task.test_examples or _examples(some)
    most = Design(tuple(arms), len(next(iter(arms.values()))), examples)
    first = first_design(most)
    console.say(f"{len(arms)} arms with at most {_size(most)} each; first {_size(first)}.")
    keep_rates(some)
    found = settle(_look(arms, limits, console), first, most, limits, sure, 60 * budget_minutes)
    known = f"{found.looks} looks, the last at {_size(found.design)}"
    end = f"{'sure enough' if found.decided else 'not sure enough'}, all looks counted (asked: {sure:.1%})"
    _leave_out(arms, found.design, [f"An adaptive sweep of {known}: {end}.", *found.dropped.values()])
    return some, found


def compose_arms(overrides: Sequence[str]) -> Arms:
    """The runs of the whole sweep, by arm and seed.

    Raises:
        ConfigurationError: as in `settle_sweep`.
    """
    given = list(overrides) if any(text.startswith("seed=") for text in overrides) else [*overrides, MOST_SEEDS]
    configs = compose(given, multirun=True, key=lambda config: f"{config.seed} {run_id(config)}")
    configs = [replace(config, sweep=f"{config.sweep}-settle") for config in configs]
    several = {(config.model.name, config.task.name, config.suite.name) for config in configs}
    if len(several) > 1:
        found = "; ".join(" / ".join(names) for names in sorted(several))
        raise ConfigurationError([f"settle: one model, task and suite at a time; given {found}"])
    names = names_of_arms((str(place), config.method.name, config) for place, config in enumerate(configs))
    arms: Arms = {}
    for place, config in enumerate(configs):
        arms.setdefault(names[str(place)], {})[config.seed] = config
    if len(arms) < 2:
        raise ConfigurationError([f"settle: takes two arms or more, such as method=full,lora; given {', '.join(arms)}"])
    return arms


def _examples(config: RunConfig) -> int:
    """All test examples that there are, once prepared."""
    summary = read_file(DataSummary, data_folder(config) / "summary.json")
    assert summary is not None
    return summary.test_examples


def _runs(arms: Arms, design: Design) -> dict[str, tuple[str, RunConfig]]:
    """run_id -> (its arm, its run) of a design; a seed adds nothing to an arm that does not depend on it."""
    found = {}
    for arm in design.arms:
        for config in list(arms[arm].values())[: design.seeds]:
            run = replace(config, task=replace(config.task, test_examples=design.examples))
            found[run_id(run)] = (arm, run)
    return found


def _look(arms: Arms, limits: Limits, console: Console) -> Callable[[Design], tuple[Evidence | str, float]]:
    """What `stats.settling.settle` looks through: make the runs of a design that are missing, and read them all."""
    spent: dict[str, float] = {}

    def look(design: Design) -> tuple[Evidence | str, float]:
        runs = _runs(arms, design)
        pending = [run for _, run in runs.values() if not is_finished(run)]
        console.say(f"{', '.join(design.arms)}: {_size(design)}, {len(pending)} runs to do.")
        prepare_all(pending, console)
        for run in pending:
            run_one(run, console)
        records = {name: read_record(run_folder(run)) for name, (_, run) in runs.items()}
        spent.update({name: _own_seconds(record) for name, record in records.items() if record})
        _leave_out(arms, design, [])
        found = groups(load(sweep_folder(next(run for _, run in runs.values()))))
        evidence = evidence_of(found[0], limits.price_usd_per_hour) if found else "No run ended well."
        if isinstance(evidence, Evidence):  # an arm keeps the name that it has in the whole sweep
            planned = {shown: runs[of_arm[0].run_id][0] for shown, of_arm in found[0].by_arm.items()}
            out = {planned.get(shown, shown): why for shown, why in evidence.out.items()}
            evidence = replace(evidence, arms=[planned[shown] for shown in evidence.arms], out=out)
        return evidence, sum(spent.values())

    return look


def _size(design: Design) -> str:
    return f"{design.seeds} seed{'s' if design.seeds > 1 else ''} and {design.examples:,} test examples"


def _own_seconds(record: Record) -> float:
    """What a run took itself, without the stages that it took over."""
    return sum(s for stage, s in record.stage_wall_seconds.items() if stage not in record.reused_stages)


def _leave_out(arms: Arms, design: Design, said: list[str]) -> None:
    """Name the runs in the sweep's folder that are not of the design, and what a reader of its report must know."""
    runs = _runs(arms, design)
    folder = sweep_folder(next(run for _, run in runs.values()))
    others = sorted(path.parent.name for path in folder.glob("*/plan.json") if path.parent.name not in runs)
    write_atomic(folder / SETTLED_FILE, to_json(LeftOut(others, said)))
