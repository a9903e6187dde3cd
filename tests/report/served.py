"""Made-up serving results for the made-up runs, with latencies and differences that are known beforehand.

>>> record, answers = served(make_record("lora", 0))
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from synthetic import ENVIRONMENT, EXAMPLES, MIB, build_sweep, make_samples

from bench.record import PhaseMemory, Record, ServeResult, from_json, to_json
from bench.served import AdapterGeneration, Adapters, Fidelity, Generation, LogitDifference, ServedAnswer, ServedForm

SETTINGS = {"name": "full", "prompt_tokens": [64], "batch_sizes": [1, 8], "new_tokens": 16, "repetitions": 5,
            "rounds": 2, "fidelity_examples": None, "adapters": [1, 2, 4]}  # fmt: skip
# form -> what it is, timed as, base, MiB on disk, total seconds at batch 1, score lost, mean logit difference
Facts = tuple[str, str, str | None, int, float, float, float]
LORA: dict[str, Facts] = {
    "base": ("the original base, 16-bit", "base", None, 257, 0.40, 0.0, 0.0),
    "unmerged": ("the original base with the adapter beside it, 16-bit", "unmerged", "base", 276, 0.60, 0.0, 0.0),
    "merged": ("the original base with the adapter merged, 16-bit", "merged", "base", 257, 0.40, 0.0, 0.01),
    "merged_nf4": ("..., quantized to nf4", "merged_nf4", "base", 120, 0.50, 0.05, 0.2),
}
QLORA: dict[str, Facts] = {
    "base": LORA["base"],
    "base_nf4": ("the quantized base", "base_nf4", None, 118, 0.50, 0.0, 0.0),
    "unmerged": ("the quantized base with the adapter beside it", "unmerged", "base_nf4", 137, 0.75, 0.0, 0.0),
    "merged": ("the quantized base, dequantized, with the adapter merged, 16-bit", "merged", "base", 257, 0.40, 0.0,
               0.02),
    "merged_original": ("the original base with the adapter merged, 16-bit", "merged", "base", 257, 0.40, 0.0, 0.1),
}  # fmt: skip
FORMS = {"base": {"base": LORA["base"]}, "lora": LORA, "qlora": QLORA}


def served(record: Record) -> tuple[Record, list[ServedAnswer]]:
    """The record with a serving result, and the answers of its tuned forms."""
    facts = FORMS[record.method]
    tuned = [name for name, fact in facts.items() if fact[2] is not None]
    answers = [answer for name in tuned for answer in _answers(record, name, facts[name][5])]
    result = ServeResult(
        settings=SETTINGS,
        forms=[_form(name, fact) for name, fact in facts.items()],
        generations=[g for name, fact in facts.items() if fact[1] == name for g in _generations(name, fact[4])],
        fidelity=[_fidelity(name, facts[name], answers, tuned[0]) for name in tuned],
        adapters=_adapters() if tuned else None,
        skipped={},
        memory=[
            PhaseMemory(f"{what} {name}", (fact[3] + more) * MIB, None)
            for name, fact in facts.items()
            if fact[1] == name
            for what, more in (("load", 300), ("serve", 400))
        ],
        spans_seconds={"latency": 100.0},
        environment=ENVIRONMENT,
    )
    return replace(record, serve=result), answers


def _form(name: str, fact: Facts) -> ServedForm:
    is_what, timed_as, base, size, *_ = fact
    timed = timed_as == name
    loads = [0.2 + 0.01 * n for n in range(10)] if timed else None
    return ServedForm(
        name, is_what, timed_as, base, size * MIB if timed else None, size * MIB if timed else None, loads
    )


def _generations(name: str, seconds: float) -> list[Generation]:
    """The later five repetitions are a tenth slower, alike for all forms."""
    return [
        Generation(name, 64, size, repetition, 0.1 * factor, seconds * (1 + size / 8) * factor)
        for repetition, factor in ((n, 1.0 if n < 5 else 1.1) for n in range(10))
        for size in (1, 8)
    ]


def _answers(record: Record, form: str, lost: float) -> list[ServedAnswer]:
    return [
        ServedAnswer(
            form, s.example_id, s.prediction, s.scores | {"rougeL": s.scores["rougeL"] - lost}, s.loss, s.loss_tokens
        )
        for s in make_samples(record.method, record.seed)
    ]


def _fidelity(name: str, fact: Facts, answers: list[ServedAnswer], reference: str) -> Fidelity:
    own = [answer for answer in answers if answer.form == name]
    scores = {metric: float(np.mean([a.scores[metric] for a in own])) for metric in ("rougeL", "exact_match")}
    if name == reference:
        return Fidelity(name, EXAMPLES, scores, 2.5)
    logits = LogitDifference(256, 20 * fact[6], fact[6], 0.95)
    return Fidelity(name, EXAMPLES, scores, 2.5, logits, equal_answers=EXAMPLES - 4)


def _adapters() -> Adapters:
    generations = [
        AdapterGeneration(
            way, count, 4 if way == "mixed" else 4 // count, repetition, seconds / count ** (way != "mixed")
        )
        for repetition in range(3)
        for count in (1, 2, 4)
        for way, seconds in (("mixed", 1.0 + 0.1 * count), ("swapped", 1.6), ("copies", 1.2))
    ]
    held = {str(count): (500 + 10 * count) * MIB for count in (1, 2, 4)}
    return Adapters(64, 10 * MIB, 257 * MIB, [0.1, 0.12, 0.11], [0.01, 0.01, 0.01], held, generations)


def build_served_sweep(folder: Path) -> Path:
    """The made-up sweep with base, lora and qlora served."""
    build_sweep(folder, failed=False)
    for method in FORMS:
        for path in folder.glob(f"{method}-*/record.json"):
            record, answers = served(from_json(Record, path.read_bytes()))
            path.write_text(to_json(record))
            lines = "".join(json.dumps(json.loads(to_json(answer))) + "\n" for answer in answers)
            (path.parent / "served_answers.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder
