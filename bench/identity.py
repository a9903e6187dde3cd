"""Names that follow from content: equal descriptions give equal ids, on every machine.

The keys follow from the settings' roles (`config.Role`) and are prefixes of the stages: `data_key` names prepared data,
`training_key` weights and train.json, `run_id` a run's folder. A setting of evaluation changes the last alone, so that
nothing is trained again. `comparison_key` is equal for runs that may be compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.config import Role, RunConfig, flat, roles, to_mapping

MEASURED = ("data", "training", "evaluation")  # the stages whose settings a run is named by
_DIGITS = 12


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def settings_with_roles(config: RunConfig) -> list[tuple[str, Any, Role]]:
    """(dotted setting, value, role) of every setting, in the order of definition."""
    return [(name, value, roles()[name]) for name, value in flat(to_mapping(config)).items()]


def settings_of_stages(config: RunConfig, *stages: str) -> dict[str, Any]:
    """Dotted setting -> value, of the settings that change these stages' results first and apply to the run."""
    found = settings_with_roles(config)
    return {name: value for name, value, role in found if role.stage in stages and role.applies(config)}


def data_key(config: RunConfig) -> str:
    """Names the prepared, tokenized data of all splits (12 hex digits)."""
    found = settings_with_roles(config)
    prepared = {n: value for n, value, role in found if role.stage == "data" or (role.in_data and role.in_data(config))}
    return digest(prepared)[:_DIGITS]


def training_key(config: RunConfig) -> str:
    """Names the weights and train.json: what decides them, and nothing of evaluation (12 hex digits)."""
    return digest(settings_of_stages(config, "data", "training"))[:_DIGITS]


def run_id(config: RunConfig) -> str:
    """`method-model-task-sSEED-HASH`; `s-` where nothing depends on the seed: the base without solved examples.

    >>> run_id(config)
    'lora-smollm2-135m-docstrings-s0-1f2e3d4c'
    """
    return _named(config, digest(settings_of_stages(config, *MEASURED)))


def _named(config: RunConfig, hashed: str) -> str:
    seed = f"s{config.seed}" if roles()["seed"].applies(config) else "s-"
    parts = [config.method.name, config.model.name, config.task.name, seed, hashed[:8]]
    return "-".join(part.replace("/", "_") for part in parts)


def comparison_key(config: RunConfig) -> str:
    """Equal for runs that agree in all that a comparison requires: they differ in method and seed (12 hex digits)."""
    found = settings_with_roles(config)
    return digest({n: v for n, v, role in found if role.requirement and role.stage in MEASURED})[:_DIGITS]


def tuning_key(config: RunConfig) -> str:
    """Equal for runs that one search of the learning rate holds for: same model, method, task and budget."""
    relevant = settings_of_stages(config, "data", "training")
    return digest({n: value for n, value in relevant.items() if not roles()[n].keeps_rate})[:_DIGITS]


def sweep_folder(config: RunConfig) -> Path:
    """The runs that are reported together."""
    return Path(config.paths.results) / config.sweep


def run_folder(config: RunConfig) -> Path:
    """A run's folder: everything needed to read the run."""
    return sweep_folder(config) / run_id(config)


def artifact_folder(config: RunConfig) -> Path:
    """A training's weights: disposable, never needed to read a run; runs of one `training_key` share them."""
    return Path(config.paths.artifacts) / _named(config, training_key(config))


def data_folder(config: RunConfig) -> Path:
    """The tokenized data, shared by all runs with the same `data_key`."""
    return Path(config.paths.cache) / "data" / data_key(config)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops. Text is written as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def flush_to_disk(folder: Path) -> None:
    """Wait until the folder's files are on the disk, so that a marker written next does not outlive them."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors that make a model or an adapter; others beside them (another layout of it) are left out."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    named = [folder / name for name in ("model.safetensors", "adapter_model.safetensors")]
    return [path for path in named if path.exists()] or sorted(folder.glob("*.safetensors"))


def weights_sha256(folder: Path) -> str | None:
    """SHA-256 over a model's weights, file after file by name, in hex; None where there are none."""
    hashed, files = hashlib.sha256(), sorted(weight_files(folder))
    for path in files:
        with path.open("rb") as file:
            while block := file.read(2**20):
                hashed.update(block)
    return hashed.hexdigest() if files else None


def names_of_arms(runs: Iterable[tuple[str, str, RunConfig]]) -> dict[str, str]:
    """run -> the name of its arm, for (run, method, its configuration) of one model, task and suite.

    An arm is called after its method; where settings of one method vary (a search of learning rates, two budgets),
    their values follow: "lora (learning_rate=0.0002)". Where two or more vary, and each sweep has its own, the sweep's
    name is shorter: "lora (monday)".
    """
    by_method: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    sweep_of: dict[str, str] = {}
    for run, method, config in runs:
        by_method[method][run] = _settings_of_arm(config)
        sweep_of[run] = config.sweep
    names: dict[str, str] = {}
    for method, settings in by_method.items():
        keys = dict.fromkeys(key for values in settings.values() for key in values)
        varying = [k for k in keys if len({repr(values.get(k)) for values in settings.values()}) > 1]
        texts = {
            run: ", ".join(f"{key.rpartition('.')[2]}={values.get(key)}" for key in varying)
            for run, values in settings.items()
        }
        if len(varying) > 1 and _one_to_one((sweep_of[run], text) for run, text in texts.items()):
            texts = {run: sweep_of[run] for run in texts}
        names |= {run: f"{method} ({text})" if text else method for run, text in texts.items()}
    return names


def _one_to_one(pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether neither side of a pair occurs with two partners."""
    found = set(pairs)
    return len(found) == len({left for left, _ in found}) == len({right for _, right in found})


def _settings_of_arm(config: RunConfig) -> dict[str, Any]:
    """What sets one arm apart from another of the same method: all that is measured but the seed."""
    found = settings_with_roles(config)
    return {
        name: value
        for name, value, role in found
        if name != "seed" and role.stage in MEASURED and (role.applies(config) or not config.untrained)
    }
