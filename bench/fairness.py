"""What two runs share and differ in, and what keeps them from being compared.

One diff of settings serves the plan, before anything runs, and the refusal, after: `differences`. What a setting is
called in a comparison is in its role (`bench.config`). The names are those of `allow_different=NAME[,NAME...]`, which
lets runs be compared in spite of a difference.

    >>> differences(config_of_lora, config_of_full)["method.learning_rate"]
    (0.0005, 5e-05)
    >>> [str(reason) for reason in reasons_against(lora_seed_0, full_seed_0)]
    ['they consumed different data (data_stream_sha256 1f2e3d4c and 99aa88bb)']
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.config import RunConfig, role_of
from bench.identity import names_of_arms, run_id, settings_of
from bench.record import Environment, EvaluateResult, Record, RegressionResult, TrainResult

COMPUTING_PACKAGES = ("transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "lm-eval")
DIGEST_SHOWN = 8  # characters
REQUIREMENTS = {
    "model": "settings of the model, and the revision that was loaded",
    "task": "settings of the task",
    "suite": "settings of the regression suite",
    "budget": "settings of training, and the number of optimizer steps",
    "hardware": "settings of the hardware that have no name of their own here",
    "stream": "the tokens consumed in training, and the prepared data",
    "device": "the device, how many there were, and how they shared a step",
    "threads": "threads of computation, and how many processors the process could use",
    "software": "versions of torch and of the packages that compute",
    "numerics": "compute dtype, attention kernel, compilation, padding, and where an adapter is added",
}
_MEASURED = {  # requirement -> the facts of a stage's environment that it is about, with what each is called
    "device": {"device": "device", "device_count": "number of devices"},
    "threads": {"threads": "threads", "cpus": "number of usable processors"},
    "software": {"torch": "torch"},
    "numerics": {"compute_dtype": "compute_dtype", "attention": "attention"},
}
STAGES = ("train", "evaluate", "regression", "frontier", "weights", "serve")
# Above these a stage's speed is in doubt. Threads of a CPU run wait for one another: 0.13 processors taken by others
# cost matrix products 9%; an idle machine read up to 0.06 (`python -m benchmarks.busy`). A GPU run needs few of them.
BUSY_CORES, BUSY_SHARE_BESIDE_GPU = 0.1, 0.05
FILE = "fairness.json"  # in results/<sweep>: what was known before the sweep ran
_VALUE_CHARACTERS, _SETTINGS_SHOWN = 40, 4


@dataclass(frozen=True)
class Reason:
    """Why two runs may not be compared: the requirement that is not met, and a clause for a person."""

    name: str  # of REQUIREMENTS; another where no exception can be made
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def may_be_allowed(self) -> bool:
        """Whether `allow_different` can name it."""
        return self.name in REQUIREMENTS


# --- The diff of settings ---


def requirement_of(setting: str, *, trained: bool = True) -> str | None:
    """The requirement that a setting ("train.epochs") belongs to; None when runs may differ in it.

    Args:
        trained: False when one of the runs trains nothing: only what concerns evaluation must agree.
    """
    role = role_of(setting)
    for_training = role.stage == "training" if role.for_training is None else role.for_training
    return role.requirement if trained or not for_training else None


def differences(left: RunConfig, right: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Setting -> its two values where they differ; None: not set, or of no use to that run."""
    sides = settings_of(left), settings_of(right)
    pairs = {name: (sides[0].get(name), sides[1].get(name)) for name in {**sides[0], **sides[1]}}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def refused_settings(left: RunConfig, right: RunConfig, *, trained: bool = True) -> list[Reason]:
    """The requirements that two runs' settings do not meet, with the settings; `trained`: see `reasons_against`."""
    trained = trained and not (left.untrained or right.untrained)
    found: dict[str, list[str]] = {}
    for setting, values in differences(left, right).items():
        if name := requirement_of(setting, trained=trained):
            found.setdefault(name, []).append(f"{setting} {_shown(values[0])} and {_shown(values[1])}")
    reasons = []
    for name in (name for name in REQUIREMENTS if name in found):
        more = len(found[name]) - _SETTINGS_SHOWN
        listed = ", ".join(found[name][:_SETTINGS_SHOWN]) + (f", and {more} more" if more > 0 else "")
        reasons.append(Reason(name, f"their settings differ ({listed})"))
    return reasons


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}..."


# --- Before a sweep runs ---


@dataclass(frozen=True)
class Pair:
    """Two arms that will or will not be compared."""

    left: str
    right: str
    reasons: list[Reason]  # against comparing them


@dataclass(frozen=True)
class Group:
    """The arms of one model, task and suite; others are never compared with them."""

    name: str
    seeds: dict[str, list[int]]  # by arm
    identical: dict[str, Any]  # setting -> value, the same for every arm that it concerns
    different: dict[str, dict[str, Any]]  # setting -> {arm: value}; an arm that has no such setting is left out
    pairs: list[Pair]


def groups_of(configs: Sequence[RunConfig]) -> list[Group]:
    """Every pair of arms, by group; a group of one arm has no pairs."""
    members: dict[str, list[RunConfig]] = {}
    for config in configs:
        members.setdefault(" / ".join((config.model.name, config.task.name, config.suite.name)), []).append(config)
    return [_group(name, group) for name, group in members.items()]


def _group(name: str, configs: Sequence[RunConfig]) -> Group:
    runs = {run_id(config): config for config in configs}
    names = names_of_arms((run, config.method.name, config) for run, config in runs.items())
    arms: dict[str, list[RunConfig]] = {}
    for run, config in runs.items():
        arms.setdefault(names[run], []).append(config)
    identical, different = side_by_side({arm: settings_of(of_arm[0]) for arm, of_arm in arms.items()})
    return Group(
        name=name,
        seeds={arm: [run.seed for run in of_arm] for arm, of_arm in arms.items()},
        identical=identical,
        different=different,
        pairs=[_pair(left, right, arms) for left, right in itertools.combinations(arms, 2)],
    )


def side_by_side(by_arm: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(setting -> the value that all arms share, setting -> {arm: value that is not None}), from each arm's settings.

    What an untrained arm has no use for may be missing there; a setting of a method must be in all to be shared.
    """
    identical: dict[str, Any] = {}
    different: dict[str, dict[str, Any]] = {}
    for setting in dict.fromkeys(setting for settings in by_arm.values() for setting in settings):
        values = {arm: settings[setting] for arm, settings in by_arm.items() if setting in settings}
        known = {arm: value for arm, value in values.items() if value is not None}
        everywhere = len(values) == len(by_arm) or not setting.startswith("method.")
        if everywhere and known and len({repr(value) for value in values.values()}) == 1:
            identical[setting] = next(iter(known.values()))
        elif known:
            different[setting] = known
    return identical, different


def _pair(left: str, right: str, arms: dict[str, list[RunConfig]]) -> Pair:
    first, second = arms[left][0], arms[right][0]
    reasons = refused_settings(first, second)
    alone = {run.seed for run in arms[left]} ^ {run.seed for run in arms[right]}
    if alone and not (first.untrained or second.untrained):
        reasons.append(Reason("seed", f"only one of them has seed {', '.join(map(str, sorted(alone)))}"))
    return Pair(left, right, reasons)


def to_json(groups: Sequence[Group]) -> str:
    """For a file: what the arms of a group share and differ in, and the pairs that will not be compared, with why."""
    content = [asdict(group) | {"pairs": [asdict(pair) for pair in group.pairs if pair.reasons]} for group in groups]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


# --- After it ran ---


def reasons_against(left: Record, right: Record, *, trained: bool = True) -> list[Reason]:
    """Why the results of two runs may not be compared; empty when they may.

    Trained runs must agree in all settings but the method's, in the consumed data, and in the environment of training
    and evaluation. An untrained run consumed no data and has no budget: it must agree in what concerns evaluation. What
    either run does not know is no reason.

    Args:
        trained: False: they are compared by their answers alone, however they were trained.
    """
    trained = trained and not (left.config.untrained or right.config.untrained)
    reasons = refused_settings(left.config, right.config, trained=trained)
    if trained:
        if left.comparison_key != right.comparison_key and not reasons:
            reasons.append(Reason("settings", f"their keys differ ({left.comparison_key} and {right.comparison_key})"))
        if left.train is None or right.train is None:
            return [*reasons, Reason("training", "one of them has no training result")]
        reasons += _consumed(left.train, right.train)
    reasons += _prepared(left, right, ("train", "validation", "test") if trained else ("test",))
    verbs: dict[Reason, list[str]] = {}  # what differs in both stages is named once
    evaluated = left.evaluate or left.regression, right.evaluate or right.regression
    for verb, stages in (("trained", (left.train, right.train) if trained else ()), ("evaluated", evaluated)):
        sides = [_facts(record, stage) for record, stage in zip((left, right), stages, strict=False) if stage]
        for name, text in set.intersection(*map(set, sides)) if len(sides) > 1 else ():
            one, other = (side[name, text] for side in sides)
            if one != other:
                verbs.setdefault(Reason(name, f"{text} ({one} and {other})"), []).append(verb)
    for reason in sorted(verbs, key=lambda reason: (list(REQUIREMENTS).index(reason.name), reason.text)):
        text = f"they were {' and '.join(verbs[reason])} with different {reason.text}"
        reasons.append(Reason(reason.name, text))
    return reasons


Measuring = TrainResult | EvaluateResult | RegressionResult


def _facts(record: Record, stage: Measuring) -> dict[tuple[str, str], Any]:
    """(requirement, what it is called) -> value: what a stage shows of itself; what is unknown is left out."""
    if record.config.method.trains == "unknown":  # only scored here
        return {}
    facts = {
        (name, text): getattr(stage.environment, of)
        for name, all_of in _MEASURED.items()
        for of, text in all_of.items()
    }
    facts |= {("software", name): _program(record, stage).get("packages", {}).get(name) for name in COMPUTING_PACKAGES}
    facts["model", "revisions of the model"] = getattr(stage, "model_revision", None)
    if stage is record.train:
        facts["numerics", "compilation"] = compilation(stage.environment.compiled)
        facts["numerics", "method.adapter.add_in_fp32"] = adds_in_fp32(record)
    return {what: value for what, value in facts.items() if value is not None}


def _program(record: Record, stage: Measuring) -> dict[str, Any]:
    """The program and machine of a stage; of the run, where the stage does not say."""
    return stage.made.provenance if stage.made else record.provenance


def _prepared(left: Record, right: Record, splits: Sequence[str]) -> Iterator[Reason]:
    """Splits of the prepared data that differ; of the test split the questions and references, not the tokens."""
    sides = [record.data.fingerprints if record.data else {} for record in (left, right)]
    for split in splits:
        prints = [side[split][:DIGEST_SHOWN] for side in sides if split in side]
        if len(set(prints)) > 1:
            yield Reason("stream", f"their prepared data differ ({split}: fingerprint {' and '.join(prints)})")


def _consumed(left: TrainResult, right: TrainResult) -> Iterator[Reason]:
    streams = left.data_stream_sha256, right.data_stream_sha256
    if streams[0] != streams[1]:
        digests = " and ".join(stream[:DIGEST_SHOWN] for stream in streams)
        yield Reason("stream", f"they consumed different data (data_stream_sha256 {digests})")
    if left.steps != right.steps:
        yield Reason("budget", f"they took different numbers of steps ({left.steps} and {right.steps})")


def program_caveats(by_arm: Mapping[str, Sequence[Record]]) -> list[str]:
    """What a reader must know of the program that measured the arms: several versions of it, or one of no commit."""
    found: dict[str, dict[str, None]] = {}  # version -> what it measured
    codes: set[str | None] = set()
    for arm, record in ((arm, record) for arm, records in by_arm.items() for record in records):
        for verb, stage in (
            ("trained", record.train),
            ("evaluated", record.evaluate),
            ("regression", record.regression),
        ):
            if stage is not None:
                program = _program(record, stage)
                changes = " with uncommitted changes" if program.get("git_dirty") else ""
                version = f"{str(program.get('git_commit') or 'an unknown commit')[:DIGEST_SHOWN]}{changes}"
                found.setdefault(version, {})[f"{arm} {verb}"] = None
                codes.add(program.get("code"))
    if len(found) > 1:
        same = ", though its code was the same" if len(codes) == 1 and None not in codes else ""
        listed = "; ".join(f"{version}: {', '.join(what)}" for version, what in found.items())
        return [f"Measured by different versions of the program{same} ({listed})."]
    return [f"Measured by {version}: no commit gives this program back." for version in found if " with" in version]


def adds_in_fp32(record: Record) -> bool | None:
    """Whether the adapter's branch was added before rounding to bf16; None where there is nothing to choose."""
    adapter = record.config.method.adapter
    environment = record.train.environment if record.train else None
    if not adapter or environment is None or environment.compute_dtype == "float32":
        return None
    # Compiled layers round once, after the addition, whatever the setting.
    return adapter.add_in_fp32 if compilation(environment.compiled) == "off" else None


def compilation(compiled: str) -> str:
    """`regional`, `off`, ...: without the reason, which changes no number."""
    return compiled.partition(":")[0].strip()


# --- Was the machine shared with others? ---


def disturbances(record: Record) -> dict[str, str]:
    """Stage -> what disturbed it, as a clause; only stages that were disturbed."""
    stages = {name: stage for name in STAGES if (stage := getattr(record, name))}
    return {name: text for name, stage in stages.items() if (text := busy(stage.environment))}


def busy(environment: Environment) -> str | None:
    """What else used the machine, as a clause; None when nothing did, or nothing is known."""
    processors = environment.cpus or environment.threads or 1
    on_cpu = environment.device.startswith("cpu")
    limit = BUSY_CORES if on_cpu else max(BUSY_CORES, BUSY_SHARE_BESIDE_GPU * processors)
    others, stolen = environment.other_cpu_cores or 0.0, environment.stolen_cpu_cores or 0.0
    clauses = []
    if round(others, 2) and others + stolen > limit:
        clauses.append(f"other processes used {others:.2f} of its {processors} processors")
    if round(stolen, 2) and others + stolen > limit:
        clauses.append(f"the hypervisor took {stolen:.2f} processors away")
    if environment.other_gpu_processes:
        clauses.append(f"{environment.other_gpu_processes} other process(es) computed on the GPU")
    return " and ".join(clauses) or None
