"""Is an exported folder still what its manifest says? Files first, here; then a child loads it and evaluates it.

>>> verify(Path("exports/lora-..."), base=None, cache="cache", tolerance=0.01).refusals
['adapter_model.safetensors: cut short: 1000 of 19578904 bytes']
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.running.exporting import sha256_of
from bench.running.launch import Watch, run_stage
from bench.spec.config import PathsConfig, RunConfig, from_mapping
from bench.spec.failure import ConfigurationError
from bench.spec.layout import write_atomic
from bench.spec.manifest import CARD, MANIFEST, ExportedFile, Manifest
from bench.spec.record import from_json, to_json

_MEANING = {  # by the beginning of a file's name: what it means that its content is another
    "chat_template": "changed chat template: prompts would not be those that the model was trained and evaluated with",
    "tokenizer": "mismatched tokenizer: not the one that the model was trained with",
    "special_tokens": "mismatched tokenizer: not the one that the model was trained with",
    "adapter_config": "changed adapter configuration: its rank, scaling, layers or base are not those exported",
    "config": "changed model configuration",
}


@dataclass(frozen=True)
class Verification:
    """Why an export is refused, or what was reproduced."""

    manifest: Manifest
    refusals: list[str]
    found: dict[str, Any] = field(default_factory=dict)  # of the child: examples, scores, test_loss, equal_answers


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder.

    Raises:
        ConfigurationError: it is no export, or its manifest cannot be read.
    """
    try:
        return from_json(Manifest, (folder / MANIFEST).read_bytes())
    except OSError:
        raise ConfigurationError([f"{folder}: no {MANIFEST} in it; export a run first: bench.export RUN"]) from None
    except ValidationError as error:
        raise ConfigurationError([f"{folder / MANIFEST}: not readable: {error.errors()[0]['msg']}"]) from None


def verify(
    folder: Path, *, base: str | None, cache: str, tolerance: float, watch: Watch = lambda progress: None
) -> Verification:
    """Check files, base, prompt format and scores, in this order; the first kind that fails ends it.

    Args:
        base: a folder to load the base from, in place of where the run found it.
        tolerance: how far a score may be from the recorded one.

    Raises:
        ConfigurationError: the folder is no export.
    """
    manifest = read_manifest(folder)
    if refusals := list(file_refusals(folder, manifest.files)):
        return Verification(manifest, refusals)
    config = _config(manifest, base, cache)
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        work = Path(temporary)
        write_atomic(work / "plan.json", to_json(config))
        request = {"folder": str(folder.resolve()), "base_given": base is not None, "tolerance": tolerance}
        write_atomic(work / "request.json", json.dumps(request))
        outcome = run_stage(work, "verify", config.hardware.stage_timeout_seconds, watch)
        if outcome.failure is not None:
            text = f"it could not be loaded and evaluated: {outcome.failure.message} ({outcome.failure.phase})"
            return Verification(manifest, [text])
        found = json.loads((work / "verify.json").read_bytes())
    return Verification(manifest, found.pop("refusals"), found)


def _config(manifest: Manifest, base: str | None, cache: str) -> RunConfig:
    config = from_mapping(manifest.config)
    model = replace(config.model, revision=manifest.base.revision or config.model.revision)  # the newest may be newer
    if base is not None:
        model = replace(model, source="folder", location=str(Path(base).resolve()))
    config = replace(config, model=model)
    return replace(config, paths=PathsConfig(cache=str(Path(cache).resolve())))


def file_refusals(folder: Path, files: dict[str, ExportedFile]) -> Iterator[str]:
    """What is missing, cut short, changed or added, a line each. The card may be edited."""
    for name, recorded in files.items():
        path = folder / name
        if name == CARD:
            continue
        if not path.is_file():
            yield f"{name}: missing"
        elif (size := path.stat().st_size) < recorded.bytes and path.suffix == ".safetensors":
            yield f"{name}: cut short: {size} of {recorded.bytes} bytes"
        elif size != recorded.bytes or sha256_of(path) != recorded.sha256:
            meaning = next((text for start, text in _MEANING.items() if name.startswith(start)), "changed")
            yield f"{name}: {meaning} (its hash is not the recorded one)"
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(present - set(files) - {MANIFEST, CARD}):
        if not name.startswith("."):
            yield f"{name}: not part of the export"
