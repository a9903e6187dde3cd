"""A gathered bundle, read: what it says of itself, whether it is unchanged, whether it serves a run.

>>> refusals(Path("bundle"))
['hub/blobs/3f1c...: 1000 bytes, not the recorded 988097824']
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from bench.running.exporting import sha256_of
from bench.spec.bundle import BUNDLE_MANIFEST, Bundle
from bench.spec.config import RunConfig
from bench.spec.failure import ConfigurationError
from bench.spec.record import from_json


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
