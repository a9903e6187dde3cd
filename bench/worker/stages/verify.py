"""Load an exported model afresh and see whether it is what its manifest says: base, prompt format, scores.

The test data are built again from their source with the exported tokenizer, so that an equal fingerprint proves that
every prompt becomes the tokens that were evaluated. `request.json` in the stage's folder names the exported folder.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bench.record import MANIFEST, EvaluateResult, Manifest, from_json
from bench.worker import data as prepare
from bench.worker import device, evaluate, methods, models
from bench.worker.main import Context
from bench.worker.serve import load_folder
from bench.worker.weights import answer_digest, base_digest, chat_template_digest, local_folder, tokenizer_digest


def run(context: Context) -> dict[str, Any]:
    """`refusals`: why it is not what it says, empty when it is; and what was reproduced."""
    request = json.loads((context.folder / "request.json").read_bytes())
    folder = Path(request["folder"])
    manifest = from_json(Manifest, (folder / MANIFEST).read_bytes())
    context.progress.phase("tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refusals = list(_of_prompt(tokenizer, manifest))
    source = ""
    if manifest.kind == "adapter" or request["base_given"]:
        context.progress.phase("base")
        source = models.fetch(context.config.model, context.cache)
        refusals += _of_base(context, source, manifest)
    if refusals:
        return {"refusals": refusals}
    context.progress.phase("data")
    summary = prepare.prepare(context.config, tokenizer, context.folder / "data")
    if summary.fingerprint != manifest.prompt.data_fingerprint:
        text = (
            "prompt format: the test prompts become other tokens than those evaluated (fingerprint "
            f"{summary.fingerprint[:12]}, recorded {manifest.prompt.data_fingerprint[:12]}); tokenizer and template "
            "are the recorded ones, so the data or the packages that they come from have changed"
        )
        return {"refusals": [text]}
    result = _evaluated(context, manifest, folder, source, tokenizer)
    return _compared(context, manifest, result, float(request["tolerance"]))


def _of_prompt(tokenizer: Any, manifest: Manifest) -> Iterator[str]:
    recorded = manifest.prompt
    if tokenizer_digest(tokenizer) != recorded.tokenizer_sha256:
        yield "mismatched tokenizer: its vocabulary or its rules are not those that the model was trained with"
    if chat_template_digest(tokenizer) != recorded.chat_template_sha256:
        yield "changed chat template: prompts would not be those that the model was trained and evaluated with"


def _of_base(context: Context, source: str, manifest: Manifest) -> list[str]:
    found = base_digest(local_folder(context.config.model, source))
    if found == manifest.base.weights_sha256:
        return []
    return [
        f"wrong base: the weights of {source} (sha256 {found[:12]}) are not those of {manifest.base.name} "
        f"({manifest.base.weights_sha256[:12]}), which was tuned"
    ]


def _evaluated(context: Context, manifest: Manifest, folder: Path, source: str, tokenizer: Any) -> EvaluateResult:
    config = context.config
    resolved = device.resolve(config)
    memory = context.measure_on(resolved)
    memory.enter("load")
    context.progress.phase("load")
    if manifest.form is None:
        model = methods.load_trained(config, source, folder, resolved.type, resolved.compute_dtype)
    else:
        model = load_folder(config, folder, resolved)
    rows = list(prepare.load_prepared(context.folder / "data").test)
    return evaluate.score(context, rows, model, tokenizer, resolved, memory)


def _compared(context: Context, manifest: Manifest, result: EvaluateResult, tolerance: float) -> dict[str, Any]:
    recorded = manifest.evaluated
    with gzip.open(context.folder / "samples.jsonl.gz", "rt", encoding="utf-8") as file:
        answers = [answer_digest(json.loads(line)["prediction"]) for line in file]
    refusals = [
        f"{name}: {result.scores[name]:.4f} here, {score.value:.4f} recorded (on {recorded.environment.device}); more "
        f"than --tolerance={tolerance:g} apart"
        for name, score in recorded.scores.items()
        if abs(result.scores[name] - score.value) > tolerance
    ]
    return {
        "refusals": refusals,
        "examples": result.examples,
        "scores": result.scores,
        "test_loss": result.heldout_loss,
        "equal_answers": sum(a == b for a, b in zip(answers, recorded.answers_sha256, strict=True)),
    }
