"""A finished run -> a folder that others can load: weights, tokenizer, card, and a manifest of all of it.

The folder appears whole or not at all. What lies beside the weights in `artifacts/` (the trainer's leftovers, served
forms) stays there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.running.exportable import Exportable
from bench.running.launch import Watch, run_stage
from bench.spec.config import PathsConfig, to_mapping
from bench.spec.failure import ConfigurationError
from bench.spec.layout import write_atomic
from bench.spec.manifest import CARD, MANIFEST, Base, Evaluated, ExportedFile, Manifest, PromptFormat, ScoreInterval
from bench.spec.record import to_json

_OF_THE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
                   "adapter_config.json")  # fmt: skip


def export(
    run: Exportable,
    target: Path,
    *,
    scores: dict[str, ScoreInterval],
    license: str | None,
    card: Callable[[Manifest], str],
    watch: Watch = lambda progress: None,
) -> Manifest:
    """Write the folder; one that was exported before is replaced.

    Args:
        scores: of the test split, by metric.
        card: the text of the card, from the manifest.

    Raises:
        ConfigurationError: something else is in the way, or the base could not be read.
    """
    if target.exists() and not (target / MANIFEST).is_file():
        raise ConfigurationError([f"{target}: is there and is no earlier export; choose another folder by --to"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as temporary:
        work, staged = Path(temporary, "work"), Path(temporary, "staged")
        found = _described(run, work, watch)
        shutil.copytree(work / "tokenizer", staged)
        _copy_weights(run, staged)
        manifest = _manifest(run, found, scores, license)
        write_atomic(staged / CARD, card(manifest))
        manifest = replace(manifest, files=hashed(staged))
        write_atomic(staged / MANIFEST, to_json(manifest))
        if target.exists():
            os.rename(target, Path(temporary, "earlier"))
        os.rename(staged, target)
    return manifest


def _described(run: Exportable, work: Path, watch: Watch) -> dict[str, Any]:
    """The child's hashes; its tokenizer lies in `work/tokenizer` afterwards."""
    revision = (run.record.train.model_revision if run.record.train else None) or run.config.model.revision
    config = replace(run.config, model=replace(run.config.model, revision=revision))  # the newest may be newer
    write_atomic(work / "plan.json", to_json(config))
    write_atomic(work / "answers.json", json.dumps(_answers(run)))
    outcome = run_stage(work, "export", run.config.hardware.stage_timeout_seconds, watch)
    if outcome.failure is not None:
        raise ConfigurationError([f"{run.folder}: its base could not be read: {outcome.failure.message}"])
    found: dict[str, Any] = json.loads((work / "export.json").read_bytes())
    return found


def _answers(run: Exportable) -> list[str]:
    """The recorded greedy answers, in the test split's order."""
    name = "samples.jsonl.gz" if run.form is None else "served_answers.jsonl.gz"
    with gzip.open(run.folder / name, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["prediction"] for row in rows if run.form is None or row["form"] == run.form]


def _copy_weights(run: Exportable, staged: Path) -> None:
    for path in (path for pattern in _OF_THE_WEIGHTS for path in run.weights.glob(pattern)):
        shutil.copyfile(path, staged / path.name)
    adapter = staged / "adapter_config.json"
    if adapter.exists():  # written while training: its base is a folder of that machine
        model = run.config.model
        content = json.loads(adapter.read_text(encoding="utf-8"))
        content["base_model_name_or_path"] = model.location if model.source == "hub" else model.name
        content["revision"] = run.record.train.model_revision if run.record.train else None
        write_atomic(adapter, json.dumps(content, indent=2) + "\n")


def _manifest(
    run: Exportable, found: dict[str, Any], scores: dict[str, ScoreInterval], license: str | None
) -> Manifest:
    record, model = run.record, run.config.model
    assert record.train is not None
    assert record.evaluate is not None  # `exportable` checked all three
    assert record.data is not None
    config = replace(run.config, paths=PathsConfig())
    loss = record.evaluate.heldout_loss
    if run.form is not None and record.serve is not None:
        loss = next(entry.test_loss for entry in record.serve.fidelity if entry.form == run.form)
    return Manifest(
        run_id=record.run_id,
        kind="model" if run.form or run.config.method.adapter is None else "adapter",
        form=run.form,
        config=to_mapping(config),
        base=Base(model.name, model.source, model.location, record.train.model_revision, found["weights_sha256"]),
        prompt=PromptFormat(found["chat_template_sha256"], found["tokenizer_sha256"], record.data.fingerprint),
        evaluated=Evaluated(
            examples=record.evaluate.examples,
            scores=scores,
            test_loss=loss,
            answers_sha256=found["answers_sha256"],
            environment=record.evaluate.environment,
        ),
        data_stream_sha256=record.train.data_stream_sha256,
        command=str(record.provenance.get("command", "")),
        git_commit=record.provenance.get("git_commit"),
        packages=record.provenance.get("packages", {}),
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        license=license,
        files={},
    )


def hashed(folder: Path) -> dict[str, ExportedFile]:
    """Every file of a folder but the manifest and hidden ones, by its path inside."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: ExportedFile(path.stat().st_size, sha256_of(path))
        for name, path in names.items()
        if name != MANIFEST and not name.startswith(".")
    }


def sha256_of(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
