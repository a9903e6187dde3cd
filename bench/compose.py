"""From command-line overrides to checked run descriptions, all of a sweep before any of it runs.

Hydra stops at the first mistake; here every override is looked at, so that a person mends all of them at once.

    >>> compose(["method=full,lora", "seed=0,1"], multirun=True)   # four RunConfigs
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bench import checkpoint
from bench.config import FREE, RunConfig, flat, roles, suggest, to_mapping
from bench.identity import content_of, run_id, tuning_key, weight_files
from bench.mistakes import ConfigurationError, all_of, checked, first_mistake, from_mapping, known_keys
from bench.trust import masked

T = TypeVar("T")
RATES_FILE = "rates.yaml"  # in results/tune/<name>/, and copied into the sweeps that used it
_DIGEST_SHOWN = 12
_STRICT = ConfigDict(extra="forbid")
Rate = Annotated[float, Field(gt=0, le=1)]
Edge = Literal["low", "high"]


@dataclass(frozen=True, config=_STRICT)
class Trial:
    """One training run of the search."""

    learning_rate: Rate
    loss: float | None  # held-out, nats per token, at its last point; None: not finite
    steps: int  # optimizer steps done
    seconds: float  # wall time, start of the process included
    run_id: str


@dataclass(frozen=True, config=_STRICT)
class Tuning:
    """The search for one method, model, task and budget."""

    key: str  # identity.tuning_key of the runs that it holds for
    method: str
    model: str
    task: str
    learning_rate: Rate | None  # the chosen one; None: no trial ended with a finite loss
    at_edge: Edge | None  # the chosen rate is the lowest or the highest that was tried
    trials: list[Trial]  # by learning rate
    seed: int
    max_steps: int | None  # of a trial; None: as many as a run of the sweep
    data_fingerprint: str | None  # of the prepared data (`DataSummary.fingerprint`)
    command: str
    git_commit: str | None
    git_dirty: bool | None
    finished_at: str  # ISO 8601, UTC


@dataclass(frozen=True, config=_STRICT)
class Rates:
    """The content of a rates file."""

    tunings: list[Tuning]
    schema_version: Literal[1] = 1


def read_rates(path: Path) -> Rates:
    """The content of a rates file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one; the message names the first mistake.
    """
    try:
        return TypeAdapter(Rates).validate_python(yaml.safe_load(path.read_bytes()))
    except (yaml.YAMLError, ValidationError) as error:
        raise ValueError(first_mistake(error)) from None


def with_tuned_rate(config: RunConfig) -> RunConfig:
    """The run with the rate that its file holds for it; unchanged when it names no file or trains nothing.

    Raises:
        ConfigurationError: no such file, not a rates file, or no rate in it for this run.
    """
    if config.rates is None or config.method.trains == "nothing":
        return config
    path = Path(config.rates)
    try:
        tunings = read_rates(path).tunings
    except FileNotFoundError:
        raise ConfigurationError([f"rates: {path}: no such file; `make tune` writes one"]) from None
    except (ValueError, OSError) as error:
        raise ConfigurationError([f"rates: {path}: not readable ({error}); write it again with `make tune`"]) from None
    tuning = next((t for t in tunings if t.key == tuning_key(config)), None)
    what = f"{config.method.name} on {config.model.name}, {config.task.name}"
    if tuning is None:
        held = ", ".join(dict.fromkeys(f"{t.method} on {t.model}, {t.task}" for t in tunings)) or "nothing"
        lacks = f"rates: {path} has no rate for {what} with these settings and this budget; it holds {held}. "
        raise ConfigurationError([f"{lacks}Tune with the same overrides (make tune ARGS=...), or leave `rates` out"])
    if tuning.learning_rate is None:
        found = f"the search for {what} found no rate with a finite loss"
        raise ConfigurationError([f"rates: {path}: {found}; set method.learning_rate"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGEST_SHOWN]
    return replace(
        config,
        method=replace(config.method, learning_rate=tuning.learning_rate),
        learning_rate_source=f"tuned: {path} sha256 {digest}",
    )


CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "conf"
LAUNCHER = ("hydra/launcher", "hydra.launcher")  # who runs the runs is none of their settings: `sweep.launchers`
TEMPLATES = (
    *(f"task.{n}" for n in ("prompt", "target", "system", "train_prompt", "train_target")),
    "model.chat_template",
)
PATHS = ("model.location", "task.train_file", "task.validation_file", "task.test_file", "suite.path", "rates",
         "paths.results", "paths.artifacts", "paths.cache", "paths.bundle")  # fmt: skip
_FUNCTION = re.compile(r"(choice|glob|shuffle|sort|tag)\(")  # of Hydra's grammar, in the place of a value


def explicit(overrides: list[str], multirun: bool = True) -> list[str]:
    """The overrides in the form that Hydra takes for every setting of the spec, named in the YAML or not.

    Raises:
        ConfigurationError: unknown settings, groups or choices, all of them.
    """
    problems: list[str] = []
    result = []
    for text in (_literal(text, multirun) for text in overrides):
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            problems.append(f"{text}: not of the form key=value ({str(error).splitlines()[0]})")
            continue
        problems += _problems(override)
        key = override.key_or_group
        plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        is_setting = plain and not _is_group(key) and not key.startswith("hydra")
        result.append(f"++{text}" if is_setting else text)
    if problems:
        raise ConfigurationError(problems)
    return result


def _literal(text: str, multirun: bool) -> str:
    """Let templates and paths mean their text: Hydra's grammar would take braces, spaces, = and # for its own.

    Commas belong to a template; in a path they separate the values of a sweep.
    """
    key, equals, value = text.partition("=")
    is_path = key.lstrip("+") in PATHS and not _FUNCTION.match(value)
    if not equals or value[:1] in ("'", '"') or not (is_path or key.lstrip("+") in TEMPLATES):
        return text
    values = value.split(",") if is_path and multirun else [value]
    return f"{key}={','.join(part if part == 'null' else quoted(part) for part in values)}"


def quoted(text: str) -> str:
    """A text that Hydra's grammar reads as it is."""
    return QuotedString(text, Quote.single).with_quotes()


def compose(overrides: list[str], multirun: bool, key: Callable[[RunConfig], str] = run_id) -> list[RunConfig]:
    """Every run that the overrides ask for, checked; runs that are equal, by their `key`, appear once.

    Raises:
        ConfigurationError: with the mistakes of all runs.
    """
    overrides = [text for text in explicit(overrides, multirun) if not text.startswith(LAUNCHER)]
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    if {"rates", "method.learning_rate"} <= given:
        raise ConfigurationError(["method.learning_rate: given together with rates, which sets it; leave one out"])

    def composed(job: list[str]) -> RunConfig:
        with as_mistakes():
            return to_run_config(hydra_compose("config", overrides=job))

    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        with as_mistakes():  # a sweeper or launcher that is not installed
            jobs = list(_jobs(overrides)) if multirun else [overrides]
        configs: list[RunConfig] = all_of(*(partial(composed, job) for job in jobs))
    unique: dict[str, RunConfig] = {}
    for config in configs:
        unique.setdefault(key(config), config)
    return list(unique.values())


@contextmanager
def as_mistakes() -> Iterator[None]:
    """Hydra's errors as mistakes of the configuration."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError([first_mistake(error)]) from None


def compose_beside(
    kind: type[T], name: str, overrides: Sequence[str], key: Callable[[RunConfig], str] = run_id
) -> tuple[T, list[RunConfig]]:
    """(a command's own settings: conf/NAME.yaml with NAME.KEY=VALUE; the runs that the other overrides describe).

    Raises:
        ConfigurationError: with the mistakes of both.
    """
    own = [text.removeprefix(f"{name}.") for text in overrides if text.startswith(f"{name}.")]
    others = [text for text in overrides if not text.startswith(f"{name}.")]

    def settings() -> T:
        try:
            merged = OmegaConf.merge(OmegaConf.load(CONFIG_FOLDER / f"{name}.yaml"), OmegaConf.from_dotlist(own))
            mapping: Any = OmegaConf.to_container(merged)
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigurationError([f"{name}: {first_mistake(error)}"]) from None
        return checked(kind, mapping, name)

    made, configs = all_of(settings, lambda: compose(others, multirun=True, key=key))
    return made, configs


def default_settings() -> str:
    """Every setting of a run with its default, as YAML."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        mapping: Any = OmegaConf.to_container(hydra_compose("config"))
    _fill_rate(mapping["method"], mapping["model"])
    return OmegaConf.to_yaml(OmegaConf.create(mapping))


def is_search(overrides: list[str]) -> bool:
    """Whether a sweeper such as Optuna draws the runs one after the other, so that they cannot be listed before.

    `compose` then gives the runs with the searched settings at their defaults: enough to check and prepare the rest.
    """
    return any(text.startswith("hydra/sweeper=") and text != "hydra/sweeper=basic" for text in overrides)


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The run description with other values at dotted keys, each checked by itself.

    >>> with_settings(config, {"method.learning_rate": 1e-4, "seed": 2})
    """
    mapping = to_mapping(config)
    for key, value in settings.items():
        *path, name = key.split(".")
        owner = mapping
        for part in path:
            owner = owner[part]
        owner[name] = value
    return TypeAdapter(RunConfig).validate_python(mapping)


def to_run_config(composed: DictConfig) -> RunConfig:
    """A composed Hydra config as a checked run description, with its inputs' content and the rate of its `rates` file.

    Raises:
        ConfigurationError: with the mistakes of this run.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigurationError([f"{key}: must be given, for example {key}=..." for key in missing])
    mapping: Any = OmegaConf.to_container(composed, resolve=True)
    texts = {key: str(value) for key, value in flat(mapping).items()}
    if masked(together := "\n".join(texts.values())) != together:
        exposed = [key for key, text in texts.items() if masked(text) != text]
        how = "a run writes this down; leave it in the environment (HF_TOKEN, ...), where the libraries look for it"
        raise ConfigurationError([f"{key}: holds a token or password; {how}" for key in exposed])
    _fill_context(mapping.get("model"))
    _fill_rate(mapping.get("method"), mapping.get("model"))
    config = from_mapping(mapping)
    return with_tuned_rate(replace(config, content=content_of(config)))


def _fill_context(model: Any) -> None:
    """A `max_context` of null becomes what the config.json of `model=folder` says."""
    if isinstance(model, dict) and model.get("source") == "folder" and model.get("max_context") is None:
        model["max_context"] = checkpoint.UNKNOWN_POSITIONS
        with contextlib.suppress(ValueError):
            stated = checkpoint.positions(checkpoint.read_config(Path(str(model.get("location")))))
            model["max_context"] = stated or checkpoint.UNKNOWN_POSITIONS


def _fill_rate(method: Any, model: Any) -> None:
    """A `learning_rate` by model size becomes the one for this model: {least 10^9 parameters: rate}.

    A folder's parameters are taken from the bytes of its weights, as 16-bit numbers; an unknown size counts as small.
    """
    rates = method.get("learning_rate") if isinstance(method, dict) else None
    if isinstance(rates, dict) and isinstance(model, dict):
        parameters = model.get("parameters")
        if parameters is None and model.get("source") == "folder":
            files = weight_files(Path(str(model.get("location"))))
            parameters = sum(file.stat().st_size for file in files if file.exists()) // 2
        reached = [least for least in rates if 1e9 * float(least) <= (parameters or 0)]
        method["learning_rate"] = rates[max(reached, key=float, default=min(rates, key=float))]


def _jobs(overrides: list[str]) -> Iterator[list[str]]:
    """One list of overrides per run: the product of the lists given, the last of each key."""
    parser = OverridesParser.create()
    fixed = [text for text in overrides if not parser.parse_override(text).is_sweep_override()]
    hydra_config = hydra_compose("config", overrides=fixed, return_hydra_config=True).hydra
    params = [f"{key}={value}" for key, value in (hydra_config.sweeper.get("params") or {}).items()]
    parsed = parser.parse_overrides(params + overrides)
    discrete = [o for o in parsed if not o.is_sweep_override() or o.is_discrete_sweep()]
    if len(discrete) < len(parsed) and not is_search(overrides):
        drawn = [f"{o.key_or_group}: not a list, but a range to search" for o in parsed if o not in discrete]
        raise ConfigurationError([f"{text}; that needs hydra/sweeper=optuna (docs/data.md)" for text in drawn])
    given = {}
    for override in discrete:
        key = override.get_key_element()
        swept = override.is_sweep_override()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        given[key] = [f"{key}={value}" for value in values]
    return map(list, itertools.product(*given.values()))


def _problems(override: Override) -> Iterator[str]:
    key = override.key_or_group
    if key.startswith("hydra"):
        return
    if key.startswith("content"):
        yield f"{key}: follows from what the inputs hold, and cannot be set"
        return
    if _is_group(key):
        allowed = choices(key)
        for choice in _chosen(override):
            if choice not in allowed and choice != "null":
                yield f"{key}={choice}: no such {key}{suggest(choice, allowed)}"
        return
    *path, name = key.split(".")
    if name in known_keys(path) or ".".join(path) in FREE:
        return
    groups = [p.name for p in CONFIG_FOLDER.iterdir() if p.is_dir()] if not path else []
    close = difflib.get_close_matches(key, roles(), n=1)
    if path and not known_keys(path) and close:  # the mistake is in a part of the path
        yield f"{key}: no such setting (did you mean {close[0]!r}?)"
    else:
        yield f"{key}: no such setting{suggest(name, [*known_keys(path), *groups])}"


def choices(group: str) -> list[str]:
    """The files of a config group."""
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


def _is_group(key: str) -> bool:
    return (CONFIG_FOLDER / key).is_dir()


def _chosen(override: Override) -> list[str]:
    if override.is_sweep_override() and override.is_discrete_sweep():
        return [str(choice).strip("'\"") for choice in override.sweep_string_iterator()]
    value = override.value()
    return [str(v) for v in value] if isinstance(value, list) else ["null" if value is None else str(value)]
