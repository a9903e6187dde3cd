"""`bench export`: a finished run as a folder that others can load: weights, tokenizer, card, and a manifest of it all.

The folder appears whole or not at all. What lies beside the weights in `artifacts/` (the trainer's leftovers, served
forms) stays there. `check` holds a folder against its manifest, file by file, and a base model against the one that was
tuned.

>>> run = exportable(Path("results/default/lora-..."), None, {"paths.cache": "cache"})
>>> export(run, Path("exports/mine"), scores=scores, license="apache-2.0", card=card)
>>> check(Path("exports/mine"), base=Path("models/smollm2"))
[]
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from bench.checkpoint import CARD, MANIFEST, Base, Evaluated, ExportedFile, Manifest, PromptFormat, ScoreInterval
from bench.config import PathsConfig, RunConfig
from bench.identity import WEIGHTS, artifact_folder, is_whole, sha256_of, weights_sha256, write_atomic
from bench.mistakes import ConfigurationError, first_mistake
from bench.outcome import Status
from bench.record import Record, from_json, to_json
from bench.sweep.child import Watch, run_stage
from bench.sweep.execute import read_record, weights_are_whole

T = TypeVar("T")
TRUST = "model.trust_remote_code"
SETTINGS = ("to", "form", "license", "check", "base", TRUST, "paths.artifacts", "paths.cache", "paths.bundle")
MEANING = {  # by the beginning of a file's name: what it means that its content is another
    "chat_template": "changed chat template: prompts would not be those that the model was trained and evaluated with",
    "tokenizer": "mismatched tokenizer: not the one that the model was trained with",
    "special_tokens": "mismatched tokenizer: not the one that the model was trained with",
    "adapter_config": "changed adapter configuration: its rank, scaling, layers or base are not those exported",
    "config": "changed model configuration",
}


@dataclass(frozen=True)
class Exportable:
    """A run that can be exported."""

    folder: Path
    record: Record
    config: RunConfig  # what its record says, but for what the command line alone may allow
    weights: Path
    form: str | None = None  # of serving; None: as it was trained

    @property
    def name(self) -> str:
        """The name of the folder that it is exported to."""
        return self.record.run_id + (f"-{self.form}" if self.form else "")


def exportable(run: Path, form: str | None, given: Mapping[str, str]) -> Exportable:
    """The run of a folder `results/<sweep>/<run_id>`, as it was trained or in a form that serving built.

    Args:
        given: on the command line: paths.artifacts (default: as recorded), paths.cache, paths.bundle, `TRUST`.

    Raises:
        ConfigurationError: it is no finished run, trained nothing, its weights are gone, it was not served so, or it
            needs code to run that nobody here has trusted.
    """
    record = read_record(run)
    if record is None:
        raise ConfigurationError([f"{run}: no finished run in it (no record.json); give results/<sweep>/<run_id>"])
    if record.status is not Status.OK or record.evaluate is None or record.data is None:
        raise ConfigurationError([f"{run}: it ended {record.status}, or was not evaluated; run it to its end first"])
    if record.train is None:
        raise ConfigurationError([f"{run}: {record.method} trains nothing, so there is nothing to export"])
    model, trusted = record.config.model, given.get(TRUST, "false").lower() == "true"
    if model.trust_remote_code and not trusted:
        what = f"the code that comes with {model.location!r} would run, and a file cannot allow that"
        raise ConfigurationError([f"{TRUST}: {what}; if you trust it, give {TRUST}=true here"])
    artifacts = given.get("paths.artifacts", record.config.paths.artifacts)
    paths = PathsConfig("", artifacts, given.get("paths.cache", "cache"), given.get("paths.bundle"))
    config = replace(record.config, paths=paths)
    weights = artifact_folder(config)
    if not weights_are_whole(config, record.train):
        how = "put them back, give paths.artifacts=FOLDER, or run it again"
        raise ConfigurationError([f"{run}: its weights are no longer there as training wrote them ({weights}); {how}"])
    config = replace(config, model=replace(model, trust_remote_code=trusted))
    found = Exportable(run, record, config, weights)
    return found if form is None else _served(found, form)


def _served(run: Exportable, form: str) -> Exportable:
    """The run in a form that serving built and scored on the whole test split. Errors as `exportable` has them."""
    scored = {entry.form: entry.examples for entry in (run.record.serve.fidelity if run.record.serve else [])}
    built = [name for name in scored if (run.weights / "forms" / name / "config.json").is_file()]
    if form not in built:
        there = f"it has {', '.join(built)}" if built else "it has none; serve it: the sweep's command with serve=full"
        raise ConfigurationError([f"form={form}: {run.folder} was not served in it; {there}"])
    if not is_whole(folder := run.weights / "forms" / form, Path(run.config.paths.cache)):
        raise ConfigurationError([f"form={form}: {folder} is not as it was built; serve it again"])
    examples = run.record.evaluate.examples if run.record.evaluate else 0
    if scored[form] < examples:
        count = f"{scored[form]} of {examples}"
        raise ConfigurationError([f"form={form}: scored on {count} test examples; set serve.fidelity_examples=null"])
    return replace(run, weights=folder, form=form)


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
        scores: on the test split, by metric.
        card: the text of the card, from the manifest.

    Raises:
        ConfigurationError: something else is in the way, or the base could not be read.
    """
    if target.exists() and not (target / MANIFEST).is_file():
        raise ConfigurationError([f"{target}: is there and is no earlier export; choose another folder by to=FOLDER"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as temporary:
        work, staged = Path(temporary, "work"), Path(temporary, "staged")
        hashes = _hashes(run, work, watch)
        shutil.copytree(work / "tokenizer", staged)
        _copy_weights(run, staged)
        manifest = _manifest(run, hashes, scores, license)
        write_atomic(staged / CARD, card(manifest))
        manifest = replace(manifest, files=checksums(staged))
        write_atomic(staged / MANIFEST, to_json(manifest))
        if target.exists():
            os.rename(target, Path(temporary, "earlier"))
        os.rename(staged, target)
    return manifest


def _hashes(run: Exportable, work: Path, watch: Watch) -> dict[str, Any]:
    """The child's hashes of base and prompt format; its tokenizer lies in `work/tokenizer` afterwards."""
    revision = (run.record.train.model_revision if run.record.train else None) or run.config.model.revision
    config = replace(run.config, model=replace(run.config.model, revision=revision))  # the newest may be newer
    write_atomic(work / "plan.json", to_json(config))
    outcome = run_stage(work, "export", run.config.hardware.stage_timeout_seconds, watch)
    if outcome.failure is not None:
        raise ConfigurationError([f"{run.folder}: its base could not be read: {outcome.failure.message}"])
    found: dict[str, Any] = json.loads((work / "export.json").read_bytes())
    return found


def _copy_weights(run: Exportable, staged: Path) -> None:
    paths = [path for pattern in WEIGHTS for path in run.weights.glob(pattern)]
    if links := [f"{path}: a link, where only files of the run are exported" for path in paths if path.is_symlink()]:
        raise ConfigurationError(links)
    for path in paths:
        shutil.copyfile(path, staged / path.name)
    adapter = staged / "adapter_config.json"
    if adapter.exists():  # written while training: its base is a folder of that machine
        model = run.config.model
        content = json.loads(adapter.read_text(encoding="utf-8"))
        content["base_model_name_or_path"] = model.location if model.source == "hub" else model.name
        content["revision"] = run.record.train.model_revision if run.record.train else None
        write_atomic(adapter, json.dumps(content, indent=2) + "\n")


def _manifest(
    run: Exportable, hashes: dict[str, Any], scores: dict[str, ScoreInterval], license: str | None
) -> Manifest:
    record, model = run.record, run.config.model
    assert record.train is not None
    assert record.evaluate is not None  # `exportable` checked all three
    assert record.data is not None
    program = record.train.made.provenance if record.train.made else record.provenance  # of what is exported
    loss = record.evaluate.heldout_loss
    if run.form is not None and record.serve is not None:
        loss = next(entry.test_loss for entry in record.serve.fidelity if entry.form == run.form)
    return Manifest(
        run_id=record.run_id,
        kind="model" if run.form or run.config.method.adapter is None else "adapter",
        form=run.form,
        config=replace(run.config, paths=PathsConfig()),
        base=Base(model.name, model.source, model.location, record.train.model_revision, hashes["weights_sha256"]),
        prompt=PromptFormat(hashes["chat_template_sha256"], hashes["tokenizer_sha256"], record.data.fingerprint),
        evaluated=Evaluated(record.evaluate.examples, scores, loss, record.evaluate.environment),
        data_stream_sha256=record.train.data_stream_sha256,
        command=str(program.get("command", "")),
        git_commit=program.get("git_commit"),
        packages=program.get("packages", {}),
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        license=license,
        files={},
    )


def checksums(folder: Path, manifest: str = MANIFEST) -> dict[str, ExportedFile]:
    """Size and SHA-256 of every file below a folder, by its path inside; the manifest, hidden files and locks apart."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = (n for n, p in paths.items() if n != manifest and not n.startswith(".") and p.suffix != ".lock")
    return {name: ExportedFile(paths[name].stat().st_size, sha256_of(paths[name])) for name in kept}


def read_manifest(kind: type[T], path: Path, how: str) -> T:
    """What a folder says of itself.

    Args:
        how: such a folder is made.

    Raises:
        ConfigurationError: the folder holds no manifest, or one that cannot be read.
    """
    try:
        return from_json(kind, path.read_bytes())
    except OSError:
        raise ConfigurationError([f"{path.parent}: no {path.name} in it; {how}"]) from None
    except ValueError as error:
        raise ConfigurationError([f"{path}: not readable: {first_mistake(error)}"]) from None


def changed_files(folder: Path, files: dict[str, ExportedFile]) -> Iterator[str]:
    """The files that are missing, cut short, changed or outside of the folder, a line each."""
    for name, recorded in files.items():
        path = folder / name
        meaning = next((text for start, text in MEANING.items() if name.startswith(start)), None)
        if not path.resolve().is_relative_to(folder.resolve()):
            yield f"{name}: leads out of the folder"
        elif not path.is_file():
            yield f"{name}: missing"
        elif (size := path.stat().st_size) < recorded.bytes and meaning is None:
            yield f"{name}: cut short: {size} of {recorded.bytes} bytes"
        elif size != recorded.bytes or sha256_of(path) != recorded.sha256:
            yield f"{name}: {meaning or 'changed'} (its SHA-256 is not the recorded one)"


def check(folder: Path, base: Path | None = None) -> list[str]:
    """Why an exported folder is refused, a line each; empty when it is what was exported. The card may be edited.

    Files are read and compared; nothing in the folder is loaded or run.

    Args:
        base: a base model's folder, to be held against the one that was tuned.

    Raises:
        ConfigurationError: the folder is no export, or the base's folder holds no weights.
    """
    manifest = read_manifest(Manifest, folder / MANIFEST, "export a run first: bench export RUN")
    refusals = list(changed_files(folder, {name: f for name, f in manifest.files.items() if name != CARD}))
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    refusals += [f"{name}: a link" for name, path in sorted(present.items()) if path.is_symlink()]
    known = {*manifest.files, MANIFEST, CARD}
    refusals += [
        f"{name}: not part of the export" for name in sorted(present.keys() - known) if present[name].is_file()
    ]
    if base is not None and (found := weights_sha256(base)) != manifest.base.weights_sha256:
        if found is None:
            raise ConfigurationError([f"base={base}: no .safetensors in it; give the folder of a base model"])
        refusals.append(
            f"wrong base: the weights of {base} (sha256 {found[:12]}) are not those of {manifest.base.name} "
            f"({manifest.base.weights_sha256[:12]}), which was tuned"
        )
    return refusals
