"""Result files -> one table, Markdown and JSON.

tokens/s          non-padding tokens of the timed steps / their seconds; median over the rounds
with compilation  all tokens / all seconds since the loop began; for ours that includes one held-out evaluation
                  of the untouched model, which the others do not make
overtakes after   optimizer steps after which a run that compiles has caught up with TRL's best
held-out          nats per answer token of the saved weights, in fp32
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from benchmarks.peers.run import METHODS, Run

LABELS = {
    "ours": "this harness",
    "trl": "TRL SFTTrainer",
    "plain": "transformers.Trainer + PEFT",
    "litgpt": "litgpt",
}


def summarize(folder: Path) -> list[dict[str, Any]]:
    """One row per run name, in the order of methods and speed; rounds are kept."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*-r*.json")):
        rounds.setdefault(file.stem.rpartition("-r")[0], []).append(json.loads(file.read_text()))
    rows = [_row(results) for results in rounds.values()]
    for method in METHODS:
        of_method = [row for row in rows if row["run"]["method"] == method and "tokens_per_second" in row]
        peers = [row for row in of_method if row["run"]["trainer"] == "trl" and row["run"]["precision"] == "bf16"]
        if peers:
            best = max(peers, key=lambda row: row["tokens_per_second"])
            for row in of_method:
                _compare(row, best)
    return sorted(rows, key=lambda row: (METHODS.index(row["run"]["method"]), -row.get("tokens_per_second", 0.0)))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The speeds, then the losses by step."""
    measured = [row for row in rows if "tokens_per_second" in row]
    headers = ["method", "trainer", "micro-batch", "precision", "seed", "tokens/s", "by round", "of TRL's best",
               "by round", "cores taken by others",
               "with compilation", "overtakes after", "peak, MiB", "last loss", "held-out"]  # fmt: skip
    formats = ("", "", "", "", "", ".0f", "", ".2f", "", "", ".0f", "", ".0f", ".4f", ".4f")
    if not measured:
        return "\n".join(f"- {row['name']}: not run: {row['failure']}" for row in rows) + "\n"
    speeds = tabulate(
        [_cells(row) for row in measured], headers, "github", floatfmt=formats, disable_numparse=[6, 8, 9]
    )
    steps = max((len(row["losses"]) for row in measured), default=0)
    losses = [[row["name"], *(f"{loss:.3f}" for loss in row["losses"])] for row in measured]
    by_step = tabulate(
        losses, ["training loss at step", *map(str, range(1, steps + 1))], "github", disable_numparse=True
    )
    missing = [f"- {row['name']}: not run: {row['failure']}" for row in rows if "failure" in row]
    return "\n\n".join(part for part in (speeds, by_step, _streams(measured), "\n".join(missing)) if part) + "\n"


def _row(results: list[dict[str, Any]]) -> dict[str, Any]:
    run = Run(**results[0]["run"])
    done = [result for result in results if "failure" not in result]
    if not done:
        return {"name": run.name, "run": run.to_json(), "failure": results[0]["failure"]}
    timed = slice(run.untimed_steps, None)
    speeds = [sum(r["step_tokens"][timed]) / sum(r["step_seconds"][timed]) for r in done]
    return {
        "name": run.name,
        "run": run.to_json(),
        "tokens_per_second": median(speeds),
        "tokens_per_second_by_round": speeds,
        "with_compilation": median(sum(r["step_tokens"]) / sum(r["step_seconds"]) for r in done),
        "others_load": [_others_load(r, run.untimed_steps) for r in done],
        "step_seconds": median(second for r in done for second in r["step_seconds"][timed]),
        "extra_seconds": median(_extra_seconds(r["step_seconds"], run.untimed_steps) for r in done),
        "peak_bytes": max(r["peak_bytes"] for r in done),
        "start_bytes": median(r["start_bytes"] for r in done),
        "losses": done[0]["losses"],
        "gradient_norms": done[0]["gradient_norms"],
        "heldout_loss": next((r["heldout_loss"] for r in done if "heldout_loss" in r), None),
        "data_stream_sha256": sorted({r["data_stream_sha256"] for r in done}),
        "compiled": done[0].get("compiled"),
    }


def _others_load(result: dict[str, Any], untimed: int) -> float:
    """Cores that other processes and the host took, on average over the timed steps."""
    return sum(result["step_others_cpu_seconds"][untimed:]) / sum(result["step_seconds"][untimed:])


def _extra_seconds(seconds: list[float], untimed: int) -> float:
    """What the first steps took beyond the others: compiling, and our evaluation before them."""
    return sum(seconds[:untimed]) - untimed * median(seconds[untimed:])


def _compare(row: dict[str, Any], best: dict[str, Any]) -> None:
    ratios = [
        mine / theirs
        for mine, theirs in zip(row["tokens_per_second_by_round"], best["tokens_per_second_by_round"], strict=False)
    ]
    row["of_trl_best"], row["of_trl_best_by_round"] = median(ratios), ratios
    if row["run"]["trainer"] == "ours":
        saved = best["step_seconds"] - row["step_seconds"]
        extra = max(0.0, row["extra_seconds"] - best["extra_seconds"])
        row["overtakes_after_steps"] = math.ceil(extra / saved) if saved > 0 else None


def _cells(row: dict[str, Any]) -> list[Any]:
    run = row["run"]
    ratios = row.get("of_trl_best_by_round", [])
    return [
        run["method"],
        LABELS[run["trainer"]] + ("" if run["compiled"] or run["trainer"] != "ours" else ", eager"),
        run["micro_batch"],
        run["precision"],
        run["seed"],
        row["tokens_per_second"],
        ", ".join(f"{speed:.0f}" for speed in row["tokens_per_second_by_round"]),
        row.get("of_trl_best"),
        ", ".join(f"{ratio:.2f}" for ratio in ratios),
        ", ".join(f"{load:.2f}" for load in row["others_load"]),
        row["with_compilation"],
        row.get("overtakes_after_steps"),
        row["peak_bytes"] / 2**20,
        row["losses"][-1],
        row["heldout_loss"],
    ]


def _streams(rows: list[dict[str, Any]]) -> str:
    """Whether the runs of a seed consumed the same tokens in the same order, by hash."""
    lines = []
    for seed in sorted({row["run"]["seed"] for row in rows}):
        of_seed = [row for row in rows if row["run"]["seed"] == seed]
        streams = {stream for row in of_seed for stream in row["data_stream_sha256"]}
        same = "the same tokens in the same order" if len(streams) == 1 else f"{len(streams)} DIFFERENT streams"
        lines.append(
            f"Seed {seed}: {len(of_seed)} rows consumed {same} ({', '.join(s[:12] for s in sorted(streams))})."
        )
    return "\n".join(lines)
