"""The command: run every trainer in alternation, score the weights, write the table."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.sweep.execute import provenance
from benchmarks.peers.run import METHODS, TRAINERS, Run
from benchmarks.peers.table import markdown, summarize

ROWS = ("ours/4", "trl/4", "trl/16", "plain/4", "litgpt/4")


def main() -> None:
    """Parse the options, run, and print the table."""
    options = _options()
    output: Path = options.output.resolve()
    runs = [run for method in options.methods for run in _runs(method, options)]
    (output / "runs").mkdir(parents=True, exist_ok=True)
    for run in [] if options.resume else runs:  # what an earlier command measured; other rows stay in the table
        for stale in (output / "runs").glob(f"{run.name}-r*.json"):
            stale.unlink()
    started = time.monotonic()
    if not options.resume:
        _child(runs[0], 0, output, options, prepare_only=True)
        shutil.rmtree(output / "inductor", ignore_errors=True)  # the first round compiles, later ones may read it
    for method in options.methods:
        of_method = [run for run in runs if run.method == method]
        for number in range(1, options.rounds + 1):
            for run in of_method if number % 2 else of_method[::-1]:
                if number == 1 or _row(run) not in options.once:
                    _child(run, number, output, options)
        for run in of_method:
            _score(output / "runs" / f"{run.name}-r1.json", options)
    rows = summarize(output / "runs")
    about = {**provenance(), "wall_seconds": time.monotonic() - started, "trl": _version("trl"), "rows": rows}
    (output / f"table-{'-'.join(options.methods)}.json").write_text(json.dumps(about, indent=1))
    (output / "table.md").write_text(markdown(rows))
    print(markdown(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="TRAINER/MICRO_BATCH[/fp32][/eager]")
    parser.add_argument("--once", nargs="*", default=["trl/16"], help="rows that run in the first round only")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--untimed-steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/peers"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--resume", action="store_true", help="keep what was measured already")
    parser.add_argument("--prefix", default="", help="put before each child's command: `taskset -c 0,1`, `flock FILE`")
    parser.add_argument("--litgpt-python", help="the interpreter of an environment with torch and litgpt")
    parser.add_argument("--quick", action="store_true", help="a random model, three steps, one round, not compiled")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.untimed_steps, options.rounds = 3, 1, 1
    return options


def _runs(method: str, options: argparse.Namespace) -> list[Run]:
    runs = []
    for seed in options.seeds:
        for text in options.rows:
            trainer, micro_batch, *more = text.split("/")
            if trainer not in TRAINERS or not micro_batch.isdigit() or set(more) - {"fp32", "eager"}:
                raise SystemExit(f"--rows {text}: TRAINER/MICRO_BATCH[/fp32][/eager], trainers: {', '.join(TRAINERS)}")
            runs.append(
                Run(
                    trainer=trainer,
                    method=method,
                    micro_batch=int(micro_batch),
                    precision="fp32" if "fp32" in more else "bf16",
                    seed=seed,
                    steps=options.steps,
                    untimed_steps=options.untimed_steps,
                    model="tiny-random" if options.quick else "smollm2-135m",
                    compiled="eager" not in more and not options.quick,
                )
            )
    return runs


def _child(run: Run, number: int, output: Path, options: argparse.Namespace, prepare_only: bool = False) -> None:
    """Run one child; a failure is a result."""
    result = output / "runs" / f"{run.name}-r{number}.json"
    if options.resume and result.exists():
        return
    request = output / "request.json"
    content: dict[str, Any] = {
        "run": run.to_json(),
        "folder": str(output),
        "cache": str(options.cache.resolve()),
        "litgpt_python": options.litgpt_python,
        "prepare_only": prepare_only,
    }
    request.write_text(json.dumps(content))
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(output / "inductor"), "HF_HUB_OFFLINE": "1"}
    command = [*shlex.split(options.prefix), sys.executable, "-m", "benchmarks.peers.child", str(request), str(result)]
    started = time.monotonic()
    with (output / f"{run.name}.log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    last = ((output / f"{run.name}.log").read_text().strip() or "nothing in its log").splitlines()[-1]
    if code and prepare_only:
        raise SystemExit(f"preparing the model and the data failed: {last}; see {output / f'{run.name}.log'}")
    if code:
        result.write_text(json.dumps({"run": run.to_json(), "failure": last, "exit_code": code}, indent=1))
    if not prepare_only:
        how = f"failed: {last}" if code else "done"
        print(f"round {number}: {run.name}: {how} in {time.monotonic() - started:.0f} s", flush=True)


def _score(result: Path, options: argparse.Namespace) -> None:
    stored = json.loads(result.read_text()) if result.exists() else {"failure": "not run"}
    if "failure" not in stored and "heldout_loss" not in stored:
        command = [*shlex.split(options.prefix), sys.executable, "-m", "benchmarks.peers.heldout", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print((done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1], flush=True)


def _row(run: Run) -> str:
    return f"{run.trainer}/{run.micro_batch}"


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
