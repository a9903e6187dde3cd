"""Seconds and peak memory of generation and of the suite, this tree beside another one, and whether the answers agree.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.evaluation --before /tmp/before --method lora --examples 48 --items 8 --rounds 3

Each tree runs in a process of its own, alternating, on the embedded model and task. An adapter has random weights of a
trained one's size; other methods are the untouched base.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

HERE = Path(__file__).resolve().parent.parent
PARTS = ("generate", "suite")


def main() -> None:
    """Run both trees in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, default=HERE, help="folder of another checkout")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--items", type=int, default=8, help="of each task of the suite; 0: no suite")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_run(options.method, options.examples, options.items)))
        return
    trees = {"before": options.before.resolve(), "after": HERE}
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for number in range(options.rounds):
        for name, tree in list(trees.items())[:: 1 if number % 2 == 0 else -1]:
            seen[name].append(_child(tree))
            print(f"round {number + 1}, {name}: {seen[name][-1]['figures']}", flush=True)
    print(table(seen))


def table(seen: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: medians over the rounds, the ratio within each round, and how many results are exactly equal."""
    rows = []
    for part in PARTS:
        runs = {name: [run["figures"][part] for run in of if part in run["figures"]] for name, of in seen.items()}
        if not runs["after"]:
            continue
        seconds = {name: [run["seconds"] for run in of] for name, of in runs.items()}
        ratios = [b / a for b, a in zip(seconds["before"], seconds["after"], strict=True)]
        peaks = [max(run["peak_bytes"] for run in runs[name]) / 2**20 for name in seen]
        pairs = list(zip(seen["before"][0][part], seen["after"][0][part], strict=True))
        equal = f"{sum(a == b for a, b in pairs)} of {len(pairs)}"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([part, *map(median, seconds.values()), median(ratios), spread, *peaks, equal])
    headers = [
        "part",
        "before, s",
        "after, s",
        "ratio",
        "rounds",
        "peak before, MiB",
        "peak after, MiB",
        "equal results",
    ]
    return tabulate(rows, headers, "github", floatfmt=("", ".1f", ".1f", ".2f", "", ".0f", ".0f", ""))


def _child(tree: Path) -> dict[str, Any]:
    command = [sys.executable, "-P", str(Path(__file__).resolve()), *sys.argv[1:], "--one"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tree, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def _run(method: str, examples: int, items: int) -> dict[str, Any]:
    from bench.compose import compose
    from bench.identity import data_folder
    from bench.worker import data, device, evaluate, methods, models, regression
    from bench.worker import prepare as prepare_stage
    from bench.worker.loss import inference
    from bench.worker.main import Context, Progress

    suite = [f"suite.items_per_task={items}"] if items else ["suite=none"]
    overrides = [f"method={method}", f"task.test_examples={examples}", *suite]
    with tempfile.TemporaryDirectory() as folder:
        kept = [f"paths.{name}={folder}/{name}" for name in ("results", "artifacts")]
        (config,) = compose([*overrides, "train.max_steps=1", *kept], multirun=False)
        context = Context(Path(folder), config, Progress(Path(folder), "evaluate"))
        prepare_stage.run(context)
        rows = list(data.load_prepared(data_folder(config)).test)
        resolved = device.resolve(config)
        memory = context.measure_on(resolved)
        memory.enter("load")
        source = models.locate(config.model, context.cache)
        tokenizer = models.load_tokenizer(config.model, source)
        how: dict[str, Any] = {"attn_implementation": "sdpa"}
        model = methods.load_base(config, source, resolved.type, resolved.compute_dtype, **how)
        model = _adapted(model, config.method) if config.method.adapter else model.to(resolved.compute_dtype)
        getattr(models, "take_rows_together", lambda model: None)(model)  # older trees have none
        models.stop_at(model, {ids[-1] for ids in (row["answer_ids"] for row in rows)} | {tokenizer.eos_token_id})
        spans, found = [], {}
        memory.enter("generate")
        how = {"max_new_tokens": config.task.max_new_tokens, "batch_size": config.hardware.generate_batch}
        with context.clock.span("generate"), inference(model, resolved):
            prompts = [row["prompt_ids"] for row in rows]
            answers = evaluate.generate(model, tokenizer, prompts, device=resolved, **how)
        spans.append("generate")
        found["generate"] = [answer.ids for answer in answers]
        if items:
            memory.enter("suite")
            with context.clock.span("suite"), inference(model, resolved):
                how = {"autocast_dtype": resolved.autocast_dtype}
                window = regression.window(config)
                outcome = regression.run_suite(config.suite, model, tokenizer, window, **how)
            spans.append("suite")
            found["suite"] = [(item.task, item.item_id, item.score) for item in outcome.items]
        seconds, peaks = context.clock.read(), {name: phase.peak_bytes for name, phase in memory.read().items()}
        figures = {name: {"seconds": seconds[name], "peak_bytes": peaks[name]} for name in spans}
        return {"figures": figures, **found}


def _adapted(model: Any, method: Any) -> Any:
    """An adapter of small random weights, in the dtype in which evaluation has it."""
    import torch

    from bench.worker import methods

    model = methods.make_trainable(model, method, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.002)
            if parameter.dtype is torch.float32 and "lora_" in name:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model.requires_grad_(False)


if __name__ == "__main__":
    main()
