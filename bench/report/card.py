"""The card of an exported adapter or model: what it is, what it scored, where it comes from, how to use it.

The metadata on top are those that model hubs read (`huggingface_hub.ModelCardData`); the text is a template.

    >>> print(card(manifest))
    ---
    base_model: ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bench.metrics import Scale
from bench.record import Manifest, Sample, ScoreInterval, ServedAnswer
from bench.report.markdown import fenced
from bench.report.markdown import line as cell
from bench.stats.frames import load
from bench.stats.paired import means


def own_scores(run: Path, form: str | None = None) -> dict[str, ScoreInterval]:
    """A run's own scores by metric, with their 95% intervals over the test examples.

    Args:
        form: of serving; None: the run as it was evaluated.
    """
    sweep = load(run.parent)
    rows: Sequence[Sample | ServedAnswer] = sweep.sample_rows.get(run.name, [])
    if form is not None:
        rows = [answer for answer in sweep.answer_rows.get(run.name, []) if answer.form == form]
    scales = {name: scale for r in sweep.records if r.run_id == run.name and r.evaluate
              for name, scale in r.evaluate.scales.items()}  # fmt: skip
    found: dict[str, ScoreInterval] = {}
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        values = [row.scores[name] for row in rows if name in row.scores]
        bounds = scales.get(name, Scale()).bounds
        estimate = means([np.array([values], dtype=float)], value_range=bounds).of(0)
        found[name] = ScoreInterval(estimate.mean, *estimate.interval())
    return found


def card(manifest: Manifest) -> str:
    """The whole text of the card."""
    loader = jinja2.PackageLoader("bench.report")
    environment = jinja2.Environment(loader=loader, autoescape=False, undefined=jinja2.StrictUndefined)
    method = manifest.config.method
    text = environment.get_template("card.md.j2").render(
        manifest=manifest,
        cell=cell,
        command=fenced(manifest.command or "unknown", "sh"),
        usage=fenced(_usage(manifest), "python"),
        method=method,
        what=_what(manifest),
        base_text=_base_text(manifest),
        device=manifest.evaluated.environment.device,
        packages=", ".join(f"{name} {version}" for name, version in manifest.packages.items() if version),
    )
    content = f"---\n{_metadata(manifest).to_yaml()}\n---\n\n{text}"
    return str(ModelCard(re.sub(r"\n{3,}", "\n\n", content)))


def _metadata(manifest: Manifest) -> ModelCardData:
    task, on_hub = manifest.config.task, manifest.base.source == "hub"
    dataset = task.hub_dataset
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or task.name,
            dataset_name=task.name,
            dataset_split="test",
            metric_type=name,
            metric_name=f"{name}, 95% interval {score.low:.3f} to {score.high:.3f}",
            metric_value=round(score.value, 6),
        )
        for name, score in manifest.evaluated.scores.items()
    ]
    return ModelCardData(
        base_model=manifest.base.location if on_hub else None,
        library_name="peft" if manifest.kind == "adapter" else "transformers",
        license=manifest.license,
        datasets=dataset,
        pipeline_tag="text-generation",
        tags=[manifest.config.method.name, "sft", *(["lora"] if manifest.kind == "adapter" else [])],
        model_name=manifest.run_id,
        eval_results=results,
    )


def _what(manifest: Manifest) -> str:
    if manifest.form is not None and manifest.config.method.adapter is not None:
        return f"A LoRA adapter merged into its base (form `{manifest.form}`):"
    return "A LoRA adapter of" if manifest.kind == "adapter" else "All weights of"


def _base_text(manifest: Manifest) -> str:
    base = manifest.base
    where = f" at revision `{base.revision}`" if base.revision else ""
    if base.source == "hub":
        return f"[{cell(base.location)}](https://huggingface.co/{base.location}){where}"
    package = f", from the Python package `{base.location}`" if base.source == "gguf_package" else ""
    return f"{cell(base.name)}{package}{where}"


def _usage(manifest: Manifest) -> str:
    base = manifest.base.location if manifest.base.source == "hub" else f"BASE FOLDER of {manifest.base.name}"
    revision = f", revision={manifest.base.revision!r}" if manifest.base.revision else ""
    if manifest.kind == "model":
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER", dtype="bfloat16")',
        ]
    else:
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{base}"{revision}, dtype="bfloat16")',
            'model = PeftModel.from_pretrained(base, "THIS FOLDER")',
        ]
    lines += [
        'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")',
        'messages = [{"role": "user", "content": "..."}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        "model.generate(**inputs, do_sample=False)",
    ]
    return "\n".join(lines)
