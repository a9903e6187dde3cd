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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.config import ConfigurationError, PathsConfig, RunConfig
from bench.identity import artifact_folder, write_atomic
from bench.record import (
    CARD,
    MANIFEST,
    Base,
    Evaluated,
    ExportedFile,
    Manifest,
    PromptFormat,
    Record,
    ScoreInterval,
    Status,
    from_json,
    to_json,
)
from bench.sweep import execute as store
from bench.sweep.child import Watch, run_stage

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
        config=config,
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


@dataclass(frozen=True)
class Exportable:
    """A run that can be exported."""

    folder: Path
    record: Record
    config: RunConfig
    weights: Path
    form: str | None = None  # of serving; None: as it was trained

    @property
    def name(self) -> str:
        """Of the folder that it is exported to."""
        return self.record.run_id + (f"-{self.form}" if self.form else "")


def exportable(run: Path, form: str | None = None) -> Exportable:
    """The run of a folder `results/<sweep>/<run_id>`, as it was trained or in a form that serving built.

    Raises:
        ConfigurationError: it is no finished run, trained nothing, its weights are gone, or it was not served so.
    """
    record = store.read_record(run)
    if record is None:
        raise ConfigurationError([f"{run}: no finished run in it (no record.json); give results/<sweep>/<run_id>"])
    if record.status is not Status.OK or record.evaluate is None or record.data is None:
        raise ConfigurationError([f"{run}: it ended {record.status}, or was not evaluated; run it to its end first"])
    if record.train is None:
        raise ConfigurationError([f"{run}: {record.method} trains nothing, so there is nothing to export"])
    try:
        config = from_json(RunConfig, (run / "plan.json").read_bytes())  # with the paths as they were
    except (OSError, ValueError):
        config = record.config
    weights = artifact_folder(config)
    if not store.weights_are_whole(weights, record.train.checkpoint_bytes):
        raise ConfigurationError(
            [f"{run}: its weights are no longer whole in {weights}; put them there, or delete {run} and run it again"]
        )
    if form is None:
        return Exportable(run, record, config, weights)
    return _in_form(Exportable(run, record, config, weights / "forms" / form, form))


def _in_form(run: Exportable) -> Exportable:
    """The same, when the form is there and was scored on the whole test split."""
    assert run.record.evaluate is not None
    fidelity = run.record.serve.fidelity if run.record.serve else []
    scored = {entry.form: entry.examples for entry in fidelity}
    built = [form for form in scored if (run.weights.parent / form / "config.json").is_file()]
    if run.form not in built:
        there = f"it has {', '.join(built)}" if built else "it has none; serve it: the sweep's command with serve=full"
        raise ConfigurationError([f"--form={run.form}: {run.folder} was not served in it; {there}"])
    if scored[run.form] < run.record.evaluate.examples:
        count = f"{scored[run.form]} of {run.record.evaluate.examples}"
        raise ConfigurationError(
            [f"--form={run.form}: scored on {count} test examples; set serve.fidelity_examples=null"]
        )
    return run


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
    config = manifest.config
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
