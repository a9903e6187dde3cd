"""The command line: sweeps, and the commands around them.

    python -m bench method=lora                                 one run
    python -m bench -m method=base,full,lora,qlora seed=0,1     a sweep, its report and its answer
    python -m bench COMMAND ...                                 report, plan, tune, settle, judge, gate, data, ...

Paths are given by position, everything else as KEY=VALUE; the only flags are -m, --json and --help.

Exit codes: 0 done, and every run is ok; 1 some run failed (its record says why), or something could not be written or
was refused; 2 mistakes on the command line or in the configuration, nothing was run; 130 stopped by Ctrl-C, what was
finished is kept.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from bench import machine
from bench.arguments import Given, Takes, parse, take
from bench.compose import CONFIG_FOLDER, choices, compose, default_settings, is_search
from bench.config import RunConfig, suggest
from bench.fairness import FILE, REQUIREMENTS, groups_of, to_json
from bench.identity import data_key, run_folder, sweep_folder, write_atomic
from bench.machine import Finding
from bench.mistakes import ConfigurationError, all_of, checked, names_in
from bench.outcome import Status
from bench.planner import disk
from bench.planner.advice import plan_of, planned_runs
from bench.planner.forecast import WORDS, Forecast, plan_notes, plan_table
from bench.record import to_json as record_json
from bench.sweep import exporting, fetching, judging, launchers, tuning
from bench.sweep.console import Console
from bench.sweep.execute import COMMAND_AGAIN, EXPECTED, claim, forecasts, is_finished, read_record, run_one
from bench.sweep.tracking import track_report
from bench.trust import own_folder

if TYPE_CHECKING:
    from bench.report.section import Section
    from bench.stats.limits import Limits

_DOCTOR_SECONDS = 120  # for all its trials; they take about 20
_SURE: Any = Annotated[float, Field(ge=0.5, le=0.999)]
_MINUTES: Any = Annotated[float, Field(ge=0)]
_TARGET_LOSS: Any = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None  # nats a token
console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character shows its code
    try:
        given = parse(list(sys.argv[1:] if arguments is None else arguments), TAKES)
        if "--help" in given.flags:
            console.say(help_text(given.command))
            return 0
        return COMMANDS[given.command](given)
    except ConfigurationError as error:
        console.problem(error.message())
        return 2
    except OSError as error:  # a full disk, a link in the place of a folder
        console.problem(f"{error}. What was finished is kept. {COMMAND_AGAIN}")
        return 1
    except KeyboardInterrupt:
        console.problem(f"Stopped. What was finished is kept. {COMMAND_AGAIN}")
        return 130


def help_text(command: str) -> str:
    """The help of a command; that of the sweep lists all commands, groups and settings."""
    own = inspect.cleandoc(COMMANDS[command].__doc__ or "")
    if command == "report":
        from bench.stats.limits import Limits

        limits = {f.name: ", ".join(filter(None, (f.metadata["help"], f.metadata["unit"]))) for f in fields(Limits)}
        own += f"\n\nLimits, each the most that is allowed:\n{_rows(limits)}"
        own += f"\n\nWhat allow_different can name:\n{_rows(REQUIREMENTS)}"
    if command != "sweep":
        return own
    commands = {name: inspect.cleandoc(f.__doc__ or "").splitlines()[0] for name, f in COMMANDS.items() if f != sweep}
    folders = sorted(path for path in CONFIG_FOLDER.rglob("*") if list(path.glob("*.yaml")) and path != CONFIG_FOLDER)
    groups = {str(path.relative_to(CONFIG_FOLDER)): ", ".join(choices(str(path))) for path in folders}
    return (
        f"{__doc__}\nCommands (python -m bench COMMAND --help):\n{_rows(commands)}\n\n"
        f"Groups (choose with group=name; claims are not chosen, the report judges them all):\n{_rows(groups)}\n\n"
        f"Settings (override with key=value):\n{textwrap.indent(default_settings(), '    ')}"
    )


def _rows(texts: Mapping[str, str]) -> str:
    width = max(map(len, texts)) + 2
    return "\n".join(
        textwrap.fill(text, 118, initial_indent=f"    {name:{width}}", subsequent_indent=" " * (width + 4))
        for name, text in texts.items()
    )


def sweep(given: Given) -> int:
    """Check everything, prepare what is shared, run what is missing, report."""
    own, overrides = take(given.settings, "allow_different")
    multirun = "-m" in given.flags
    searching = multirun and is_search(overrides)
    launcher = launchers.chosen_launcher(overrides)
    launchers.check(overrides, multirun, searching)
    allowed = names_in("allow_different", own.get("allow_different"), REQUIREMENTS)
    configs = compose(overrides, multirun)
    pending = [config for config in configs if searching or not is_finished(config)]
    if searching:
        console.say("The sweeper draws the runs one after the other.")
    else:
        console.plan(configs, pending, allowed)
    for config in configs:
        tuning.keep_rates(config)
    if pending and not launcher:
        console.findings([finding for finding in machine.findings(pending[0].hardware) if finding.state != "fine"])
    if not searching:
        fetching.count_all(pending, console)
    before = [] if searching else forecasts(pending, elsewhere=launcher is not None)
    console.forecast(before)
    if pending:
        fetching.prepare_all(pending, console, "fetch" if launcher else "prepare", aside=searching)
        _keep_plan(configs)
    _expect(before, elsewhere=launcher is not None)
    if searching:
        launchers.search(configs, overrides, console)
    elif pending and launcher:
        launchers.send(pending, overrides, console)
    else:
        for config in pending:
            run_one(config, console)
    folders = {sweep_folder(config): config for config in configs}
    reported = [_report(folder, allowed, config) for folder, config in sorted(folders.items())]
    ended_well = all(map(_ended_well, folders)) if searching else all(map(is_finished, configs))
    return 0 if all(reported) and ended_well else 1


def _ended_well(folder: Path) -> bool:
    """Whether every run in a sweep's folder is ok: a search draws its runs itself."""
    records = [read_record(path.parent) for path in folder.glob("*/record.json")]
    return all(record is not None and record.status is Status.OK for record in records)


def _expect(before: list[Forecast], *, elsewhere: bool) -> None:
    """Keep what each run is expected to take, now that the data are there; show it where that is news."""
    found = forecasts([f.config for f in before], elsewhere=elsewhere)
    for forecast in found:
        write_atomic(own_folder(run_folder(forecast.config)) / EXPECTED, record_json(forecast.to_record()))
    console.expects(found, show=[f.seconds for f in found] != [f.seconds for f in before])


def _keep_plan(configs: list[RunConfig]) -> None:
    """Write down what every two methods have in common, before the first of them runs."""
    for folder in sorted({sweep_folder(config) for config in configs}):
        groups = groups_of([config for config in configs if sweep_folder(config) == folder])
        if any(group.pairs for group in groups):
            write_atomic(folder / FILE, to_json(groups))


def _report(folder: Path, allowed: frozenset[str], config: RunConfig, limits: Limits | None = None) -> bool:
    """Write a sweep's report; two sweeps on one folder do so one after the other. False when it cannot be written."""
    try:
        with claim(folder.resolve()):
            _write_report([folder], allowed, limits=limits)
    except (OSError, ConfigurationError) as error:
        console.problem(f"The report could not be written: {error}. Every record is kept. {COMMAND_AGAIN}")
        return False
    if trouble := track_report(config, folder):
        console.problem(trouble)
    return True


def _write_report(
    folders: Sequence[Path], allowed: frozenset[str], target_loss: float | None = None, limits: Limits | None = None,
    formats: frozenset[str] = frozenset(),
) -> None:  # fmt: skip
    """Write the report of the folders, and say what to use: the decision of every model, task and suite."""
    from bench.report.build import read_groups, write_report  # charts take a second to import
    from bench.report.sections import answer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sweep, found = read_groups(*folders, allowed=allowed, target_loss=target_loss)
        path = write_report(sweep, found, limits, formats)
        for group in found:
            _say_answer(group.name, answer.section(group, limits), answer.change(group, limits))
    console.say(f"Report: {path}")


def _say_answer(name: str, answer: Section, change: Section | None) -> None:
    """The first two sections of a report's chapter, without their charts."""
    headline = answer.headline
    assert headline is not None
    sure = "" if headline.sureness is None else f" {headline.sureness:.0%} sure."
    console.say(f"\n{name}\n{headline.sentence}{sure} {headline.reason}")
    for table in (section.table for section in (answer, change) if section and section.table):
        console.table(table.headers, table.rows, table.headers[: table.text_columns])
    for aside in headline.asides:
        console.say(f"- {aside}")


def report(given: Given) -> int:
    """Write the report of a sweep (again), and say what to use under your limits.

    python -m bench report results/default
    python -m bench report results/default memory_gib=24 time_hours=2 quality_tolerance=0.01
    python -m bench report results/a results/b allow_different=device,threads export=latex

    The first folder gets the report, which covers all of them. Exceptions and limits hold for this report only.

    allow_different=NAME,...    compare runs that differ in these, and say so
    target_loss=NATS            held-out loss whose time and tokens are reported; default: the worst final one
    export=FORMAT,...           tables and charts in further formats
    """
    from bench.report.build import FORMATS  # only when there is work
    from bench.stats.limits import limits_from_words

    own, words = take(given.settings, "allow_different", "target_loss", "export")
    _, *options = all_of(
        lambda: _existing(given.paths),
        lambda: names_in("allow_different", own.get("allow_different"), REQUIREMENTS),
        lambda: checked(_TARGET_LOSS, own.get("target_loss"), "target_loss"),
        lambda: limits_from_words(words),
        lambda: names_in("export", own.get("export"), FORMATS),
    )
    _write_report(given.paths, *options)
    return 0


def _existing(folders: Sequence[Path]) -> None:
    missing = [folder for folder in folders if not os.path.isdir(folder)]
    if missing:
        raise ConfigurationError([f"{folder}: no such folder; sweeps are in results/<sweep>" for folder in missing])


def plan(given: Given) -> int:
    """Predict what runs will take: memory by term, whether it fits, time, energy, money.

    python -m bench plan model=llama-3.1-8b method=full,lora,qlora train=gpu hardware=h100
    ... plan.memory_gib=24,48,80     several devices; every other plan.NAME=VALUE is explained in conf/plan.yaml
    ... --json                       the same for programs, in bytes and seconds

    The settings are those of the runs. It needs no weights, no GPU and no network. Exit code 0 whether it fits or not.
    """
    runs = planned_runs(given.settings)
    fetching.count_all((config for config, *_ in runs), console, quiet="--json" in given.flags)
    made = all_of(*(partial(plan_of, *run) for run in runs))
    if "--json" in given.flags:
        print(json.dumps([asdict(plan) for plan in made], indent=1))
    else:
        console.table(*plan_table(made), WORDS)
        for line in plan_notes(made):
            console.say(line)
    return 0


def tune(given: Given) -> int:
    """Find each method's own learning rate, by the loss on the validation split.

    python -m bench tune method=full,lora,qlora                   the settings of the sweep it is for
    python -m bench tune method=lora model=... tune.max_points=7  settings of the search: conf/tune.yaml

    The rates go to results/tune/<sweep>/rates.yaml, which a sweep reads with rates=FILE.
    """
    return tuning.tune(given.settings, console)


def gate(given: Given) -> int:
    """May the candidate take the baseline's place? Exit 0: within all limits; 1: worse; 2: not settled or comparable.

    python -m bench gate results/last results/next                      two sweeps, or the folders of two runs
    python -m bench gate results/last results/next quality=-0.01 speed=0.9 arm=lora

    quality=CHANGE regression=POINTS speed=SHARE memory=SHARE    limits; none named: -0.01, -1.0, 0.9, 1.1
    arm=NAME,...                these arms; default: all that were trained
    allow_different=NAME,...    compare runs that differ in these (bench report --help lists them)
    to=FOLDER                   for gate.xml (JUnit) and gate.md; default: results/gate
    """
    from bench.report.gate import write  # pandas takes a second to import
    from bench.stats import gate as gates
    from bench.stats.frames import load

    own, words = take(given.settings, "arm", "allow_different", "to")
    _, allowed, limits = all_of(
        lambda: _existing(given.paths),
        lambda: names_in("allow_different", own.get("allow_different"), REQUIREMENTS),
        lambda: gates.limits_of(words),
    )
    baseline, candidate = given.paths
    arms = [name.strip() for name in own["arm"].split(",")] if "arm" in own else []
    checks = gates.gate(load(baseline), load(candidate), limits, arms, allowed)
    for line in write(checks, baseline, candidate, Path(own.get("to", "results/gate"))):
        console.say(line)
    return gates.exit_code(checks)


def judge(given: Given) -> int:
    """Judge what others trained: adapters, checkpoints and predictions as arms, with the tests and report of a sweep.

    python -m bench judge base=llama-3.2-1b task=gsm8k suite=general arms="{a: path/to/adapter, b: path/to/full}"
    python -m bench judge base=old,new task=... arms="{a: path/to/adapter}"     does it hold on an updated base?

    A base is one of conf/model, or a folder. An arm is a LoRA adapter of PEFT, a full checkpoint, a model's name on the
    hub, or a .jsonl file with {"id": ..., "prediction": ...} for each test example. Other settings as in a sweep.
    """
    from bench.report.gate import sentence as told  # pandas takes a second to import

    own, overrides = take(given.settings, "base", "arms", "allow_different")
    allowed, configs = all_of(
        lambda: names_in("allow_different", own.get("allow_different"), REQUIREMENTS),
        lambda: judging.judged(own.get("base"), own.get("arms"), overrides),
    )
    judging.run(configs, allowed, console)
    reported = _report(sweep_folder(configs[0]), allowed, configs[0])
    for check in judging.drift(configs):
        console.say(told(check))
    return 0 if reported and all(map(is_finished, configs)) else 1


def settle(given: Given) -> int:
    """Run only as much of a sweep as a sure answer needs: seeds, test examples and methods as they are needed.

    python -m bench settle method=base,full,lora,qlora                     at most seeds 0 to 4; settings of the sweep
    python -m bench settle method=full,lora seed=0,1,2 sure=0.9 budget_minutes=120 memory_gib=24

    sure=SHARE           stop when the answer is so sure, every look at the results paid for; default 0.95
    budget_minutes=N     start no step that would take longer in all; default 60. The first look is made in any case

    Limits as in report. Runs and report are in results/<sweep>-settle; the same command again goes on. Exit code 1:
    not sure, or a run failed.
    """
    from bench.stats.limits import Limits, limits_from_words
    from bench.sweep.settle import settle_sweep

    own, others = take(given.settings, "sure", "budget_minutes")
    _, overrides = take(others, *(limit.name for limit in fields(Limits)))
    sure, minutes, limits = all_of(
        lambda: checked(_SURE, own.get("sure", 0.95), "sure"),
        lambda: checked(_MINUTES, own.get("budget_minutes", 60.0), "budget_minutes"),
        lambda: limits_from_words([text for text in others if text not in overrides]),
    )
    config, found = settle_sweep(overrides, limits, sure, minutes, console)
    reported = _report(sweep_folder(config), frozenset(), config, limits)
    end = "Settled" if found.decided else "Not settled"
    looks = "1 look" if found.looks == 1 else f"{found.looks} looks"
    console.say(f"{end} after {looks} and {found.seconds / 60:.1f} minutes. {found.why}")
    return 0 if reported and found.decided else 1


def export(given: Given) -> int:
    """Export a tuned run as a folder for others, with its card and checksums; or check such a folder.

    python -m bench export results/default/lora-...                     writes exports/lora-...
    python -m bench export results/default/lora-... to=FOLDER license=apache-2.0
    python -m bench export results/default/lora-... form=merged         a form that serving built
    python -m bench export RUN format=gguf [gguf_type=q8_0 form=merged_original llama_cpp=FOLDER]     merged, one file
    python -m bench export RUN check=true ...               judge what is exported: score, equal answers, size, latency
    python -m bench export exports/lora-... check=true [base=FOLDER]    its files and its base against its manifest

    GGUF is written for Llama, Mistral, Qwen2 and Qwen3; for others by the converter of llama_cpp, a checkout.
    Code that comes with a model runs only by model.trust_remote_code=true given here, whatever the run's files say.
    paths.artifacts, paths.cache and paths.bundle as in a sweep; the weights are looked for where the record says.
    """
    own, others = take(given.settings, *exporting.SETTINGS)
    if others:
        hints = {text: suggest(text.partition("=")[0], [*exporting.SETTINGS]) for text in others}
        raise ConfigurationError([f"{text}: export has no such setting{hint}" for text, hint in hints.items()])
    (folder,) = given.paths
    check, is_run = checked(bool, own.get("check", False), "check"), os.path.isfile(folder / "record.json")
    if check and not is_run:
        return _checked(folder, exporting.check(folder, Path(own["base"]) if "base" in own else None))
    asked = exporting.asked_for(own)
    run = exporting.exportable(folder, None if asked.format == "gguf" else asked.form, own)
    target = Path(own.get("to", Path("exports") / run.name(asked)))
    from bench.report.markdown import card_of, own_scores  # pandas and jinja2: only when there is work
    from bench.report.sections.serving import judged

    with console.stage(f"export {run.record.run_id}") as watch:
        how: dict[str, Any] = {"scores": partial(own_scores, run.folder), "license": own.get("license"), "watch": watch}
        manifest, result = exporting.export(run, target, asked, card=card_of(run.folder), judge=check, **how)
    size_bytes = sum(file.bytes for file in manifest.files.values())
    console.say(f"Exported to {target}: {len(manifest.files)} files, {size_bytes / 2**20:.1f} MiB.")
    if result is not None:
        console.say(judged(run.folder, result))
    if manifest.license is None:
        console.say("Licence: not stated; give license=ID before you publish it.")
    console.say(f"Check it: python -m bench export {target} check=true")
    return 0


def fetch(given: Given) -> int:
    """Fetch model, data, suite and packages into one folder, for a machine without a network; or check such a folder.

    python -m bench fetch to=FOLDER model=llama-3.2-3b task=gsm8k suite=general     the settings of the runs it is for
    python -m bench fetch to=FOLDER wheels=false ...                                without the Python packages
    python -m bench fetch FOLDER check=true                                         is all of it there, unchanged?

    A run uses it by paths.bundle=FOLDER and then asks no hub. The same command again goes on where it was interrupted.
    """
    own, overrides = take(given.settings, "to", "wheels", "check")
    if checked(bool, own.get("check", False), "check") != bool(given.paths):
        raise ConfigurationError(["fetch: takes to=FOLDER to fetch into it, or FOLDER check=true to check it"])
    if given.paths:
        return _checked(given.paths[0], fetching.refusals(given.paths[0]))
    target = Path(own.get("to", "bundle"))
    wheels = checked(bool, own.get("wheels", True), "wheels")
    configs = compose(overrides, multirun=True)
    with console.stage(f"fetch into {target}") as watch:
        count = fetching.fetch(configs, target, wheels=wheels, watch=watch)
    console.say(f"Fetched into {target}: {count} files.")
    console.say(f"Runs use it with paths.bundle={target}. Check it: python -m bench fetch {target} check=true")
    return 0


def data(given: Given) -> int:
    """Check the data before anything is trained: lengths, duplicates, contamination, what the metrics cannot read.

    python -m bench data task=jsonl task.train_file=train.jsonl ...     the settings of the runs that it is for

    It needs the model's tokenizer, and none of its weights. The report of a sweep has the same section.
    """
    from bench.report.build import data_page  # charts take a second to import

    for config in {data_key(config): config for config in compose(given.settings, multirun=True)}.values():
        aside = fetching.out_of_results(config)
        with console.stage(f"check {config.task.name}") as watch:
            outcome = fetching.prepare(aside, watch, "check")
        if outcome.failure is not None:
            console.problem(f"{outcome.failure.message}; log: {run_folder(aside) / 'check.log'}")
            return 1
        console.say(data_page(json.loads((run_folder(aside) / "check.json").read_text())))
    return 0


def doctor(given: Given) -> int:
    """Look over this machine before a sweep: driver, wheel, device, kernels, compiler, disk, hub, and what mends each.

    python -m bench doctor                                              for the default sweep
    python -m bench doctor model=llama-3.1-8b method=lora,qlora ...     for these runs: their device, disk and hub
    ... --json                                                          the same for programs

    Every line is "fine", "slower" (than it could be) or "broken". Exit code 1: something is broken. Nothing is
    downloaded. A sweep prints what shows without PyTorch by itself.
    """
    configs = compose(given.settings, multirun=True)
    found = machine.findings(configs[0].hardware) + disk.findings(disk.needed(configs))
    hardware = replace(configs[0].hardware, stage_timeout_seconds=_DOCTOR_SECONDS)
    aside = fetching.out_of_results(replace(configs[0], hardware=hardware))
    as_json = "--json" in given.flags
    with nullcontext(lambda progress: None) if as_json else console.stage("doctor") as watch:
        outcome = fetching.prepare(aside, watch, "doctor")
    if outcome.failure is None:
        tried = json.loads((run_folder(aside) / "doctor.json").read_text())["findings"]
        found += [Finding(**finding) for finding in tried]
    else:
        how = f"{run_folder(aside) / 'doctor.log'} has the rest; make setup installs what constraints.txt names"
        found.append(Finding("PyTorch", "broken", outcome.failure.message, how))
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        console.findings(found)
    return 1 if any(finding.state == "broken" for finding in found) else 0


def _checked(folder: Path, refusals: Sequence[str]) -> int:
    for text in refusals:
        console.say(f"REFUSED  {folder}: {text}")
    if not refusals:
        console.say(f"CHECKED  {folder}: every file is the one that was written.")
    return 1 if refusals else 0


COMMANDS: dict[str, Callable[[Given], int]] = {
    "sweep": sweep, "report": report, "plan": plan, "tune": tune, "settle": settle, "judge": judge, "gate": gate,
    "export": export, "fetch": fetch, "data": data, "doctor": doctor,
}  # fmt: skip
TAKES: dict[str, Takes] = dict.fromkeys(COMMANDS, (0, 0, "no path")) | {
    "report": (1, sys.maxsize, "the folders of sweeps, such as results/default"),
    "gate": (2, 2, "two folders, the baseline's and the candidate's: sweeps or runs"),
    "export": (1, 1, "one folder: results/<sweep>/<run>, or an export with check=true"),
    "fetch": (0, 1, "at most one folder"),
}
