"""`bench export`: a finished run as a folder that others can load: weights, tokenizer, card, and a manifest of it all.

The folder appears whole or not at all. What lies beside the weights in `artifacts/` (the trainer's leftovers, served
forms) stays there. As GGUF the weights are merged and the tokenizer is part of the file. What is exported can be judged
against its run at once; the result lies in the folder and in the run's record, where reports find it. `check` holds a
folder against its manifest, file by file, and a base model against the one that was tuned.

>>> run = exportable(Path("results/default/lora-..."), None, {"paths.cache": "cache"})
>>> export(run, Path("exports/mine"), asked_for({}), scores=scores, license="apache-2.0", card=card)
>>> check(Path("exports/mine"), base=Path("models/smollm2"))
[]
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bench import checkpoint
from bench.checkpoint import CARD, MANIFEST, Asked, Base, Evaluated, ExportedFile, Manifest, PromptFormat, ScoreInterval
from bench.config import PathsConfig, RunConfig, ServeConfig
from bench.identity import WEIGHTS, artifact_folder, is_whole, sha256_of, weights_sha256, write_atomic
from bench.mistakes import ConfigurationError, checked, first_mistake
from bench.outcome import Status
from bench.record import Record, ServeResult, from_json, to_json
from bench.served import ServedAnswer
from bench.stats.reading import read_rows
from bench.sweep.child import Watch, run_stage
from bench.sweep.execute import ITEMS_OF, JUDGED, claim, read_record, weights_are_whole, write_record

TRUST = "model.trust_remote_code"
SETTINGS = ("to", "form", "format", "gguf_type", "llama_cpp", "license", "check", "base", TRUST, "paths.artifacts",
            "paths.cache", "paths.bundle")  # fmt: skip
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

    def name(self, asked: Asked) -> str:
        """The name of the folder that it is exported to."""
        kind = f"gguf-{asked.gguf_type}" if asked.format == "gguf" else None
        return "-".join(filter(None, (self.record.run_id, asked.form, kind)))


def asked_for(given: Mapping[str, str]) -> Asked:
    """What the children of an export are asked, of the command line; ConfigurationError: what they cannot be."""
    named = {field.name: given[field.name] for field in fields(Asked) if field.name in given}
    asked, of_gguf = checked(Asked, named), [name for name in ("gguf_type", "llama_cpp") if name in given]
    if of_gguf and asked.format != "gguf":
        raise ConfigurationError([f"{', '.join(of_gguf)}: only with format=gguf"])
    if asked.llama_cpp is not None and not (Path(asked.llama_cpp) / checkpoint.CONVERTER).is_file():
        raise ConfigurationError(
            [f"llama_cpp={asked.llama_cpp}: no {checkpoint.CONVERTER} in it; give a checkout of llama.cpp"]
        )
    return asked


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
    asked: Asked,
    *,
    scores: Callable[[str | None], dict[str, ScoreInterval]],
    license: str | None,
    card: Callable[[Manifest], str],
    judge: bool = False,
    watch: Watch = lambda progress: None,
) -> tuple[Manifest, ServeResult | None]:
    """Write the folder; one that was exported before is replaced.

    Args:
        scores: on the test split, by metric, of a form; of None: of the run as it was evaluated.
        card: the text of the card, from the manifest.
        judge: let what is exported answer the test split, before it is in its place; the result comes back, too.

    Raises:
        ConfigurationError: something else is in the way; the base could not be read; GGUF has no place for the model.
    """
    if target.exists() and not (target / MANIFEST).is_file():
        raise ConfigurationError([f"{target}: is there and is no earlier export; choose another folder by to=FOLDER"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as temporary:
        work, staged = Path(temporary, "work"), Path(temporary, "staged")
        found = json.loads(_child(run, work, "export", asked, watch))
        form = run.form
        if asked.format == "gguf":
            staged.mkdir()
            form = str(found["form"])
            os.rename(work / f"{form}.gguf", staged / f"{form}.gguf")
        else:
            shutil.copytree(work / "tokenizer", staged)
            _copy_weights(run, staged)
        result = _judged(run, work, staged, form, watch) if judge else None
        own = scores(result.forms[1].form if result else run.form)
        manifest = _manifest(run, found, form, own, license, result)
        write_atomic(staged / CARD, card(manifest))
        manifest = replace(manifest, files=checksums(staged))
        write_atomic(staged / MANIFEST, to_json(manifest))
        if target.exists():
            os.rename(target, Path(temporary, "earlier"))
        os.rename(staged, target)
    return manifest, result


def _child(run: Exportable, work: Path, stage: Literal["export", "judge"], asked: Asked, watch: Watch) -> bytes:
    """The result of a stage of the child; what else it wrote is in `work`."""
    revision = (run.record.train.model_revision if run.record.train else None) or run.config.model.revision
    config = replace(run.config, model=replace(run.config.model, revision=revision))  # the newest may be newer
    write_atomic(work / "plan.json", to_json(config))
    write_atomic(work / checkpoint.ASKED, to_json(asked))
    outcome = run_stage(work, stage, run.config.hardware.stage_timeout_seconds, watch)
    if outcome.failure is not None:
        raise ConfigurationError([f"{run.folder}: {stage} failed: {outcome.failure.message}"])
    return (work / f"{stage}.json").read_bytes()


def _judged(run: Exportable, work: Path, staged: Path, form: str | None, watch: Watch) -> ServeResult:
    """What is exported, judged beside what was evaluated, with the run's settings of serving; kept in its record."""
    asked = Asked(form=form and (form if list(staged.glob("*.gguf")) else f"{form}_exported"), exported=str(staged))
    given = run.record.serve.settings if run.record.serve else asdict(run.config.serve)
    serve = {field.name: given[field.name] for field in fields(ServeConfig) if field.name in given}
    serve |= {
        "prompt_tokens": serve["prompt_tokens"] or [64],
        "adapters": [],
        "fidelity_examples": None,
        "name": JUDGED,
    }
    config = replace(run.config, serve=ServeConfig(**serve))
    result = from_json(ServeResult, _child(replace(run, config=config), work, "judge", asked, watch))
    files = (folder / ITEMS_OF["serve"] for folder in (run.folder, work))
    answers = {(a.form, a.example_id): a for file in files for a in read_rows(ServedAnswer, file, [])}
    lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers.values())
    with claim(run.folder):
        write_atomic(run.folder / ITEMS_OF["serve"], gzip.compress(lines.encode(), mtime=0))
        serving = _joined(run.record.serve, result) if run.record.serve else result
        write_record(run.folder, replace(run.record, serve=serving))
    write_atomic(staged / checkpoint.CHECKED, to_json(result))
    return result


def _joined(first: ServeResult, judged: ServeResult) -> ServeResult:
    """One result of two; repetitions of the later one are counted on, so that ratios stay within one."""
    form, count = judged.forms[1], 1 + max((one.repetition for one in first.generations), default=-1)
    forms = [one for one in first.forms if one.form != form.form]  # it may have been judged before
    times = [one for one in first.generations if one.form != form.form]
    times += [replace(one, repetition=one.repetition + count) for one in judged.generations]
    compared = [one for one in first.fidelity if one.form != form.form] or judged.fidelity[:1]
    compared, memory = [*compared, judged.fidelity[1]], first.memory + judged.memory
    return replace(first, forms=[*forms, form], generations=times, fidelity=compared, memory=memory)


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
    run: Exportable, found: dict[str, Any], form: str | None, scores: dict[str, ScoreInterval], license: str | None,
    result: ServeResult | None,
) -> Manifest:  # fmt: skip
    record, model, gguf = run.record, run.config.model, "form" in found
    assert record.train is not None
    assert record.evaluate is not None  # `exportable` checked all three
    assert record.data is not None
    program = record.train.made.provenance if record.train.made else record.provenance  # of what is exported
    loss, environment = record.evaluate.heldout_loss, record.evaluate.environment
    if result is not None:
        loss, environment = result.fidelity[1].test_loss, result.environment
    elif run.form is not None and record.serve is not None:
        loss = next(entry.test_loss for entry in record.serve.fidelity if entry.form == run.form)
    return Manifest(
        run_id=record.run_id,
        kind="model" if form or run.config.method.adapter is None else "adapter",
        form=form,
        judged=result is not None or not gguf,
        tensors=found.get("tensors"),
        config=replace(run.config, paths=PathsConfig()),
        base=Base(model.name, model.source, model.location, record.train.model_revision, found["weights_sha256"]),
        prompt=PromptFormat(found["chat_template_sha256"], found["tokenizer_sha256"], record.data.fingerprint),
        evaluated=Evaluated(record.evaluate.examples, scores, loss, environment),
        data_stream_sha256=record.train.data_stream_sha256,
        command=str(program.get("command", "")),
        git_commit=program.get("git_commit"),
        packages=program.get("packages", {}),
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        license=license,
        files={},
    )


def checksums(folder: Path) -> dict[str, ExportedFile]:
    """Size and SHA-256 of every file below a folder, by its path inside."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: ExportedFile(path.stat().st_size, sha256_of(path)) for name, path in paths.items()}


def read_manifest(folder: Path) -> Manifest:
    """What an exported folder says of itself.

    Raises:
        ConfigurationError: the folder holds no manifest, or one that cannot be read.
    """
    try:
        return from_json(Manifest, (folder / MANIFEST).read_bytes())
    except OSError:
        raise ConfigurationError([f"{folder}: no {MANIFEST} in it; export a run first: bench export RUN"]) from None
    except ValueError as error:
        raise ConfigurationError([f"{folder / MANIFEST}: not readable: {first_mistake(error)}"]) from None


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
    manifest = read_manifest(folder)
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
