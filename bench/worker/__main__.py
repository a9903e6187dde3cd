"""`python -m bench.worker RUN_DIR STAGE`: run one stage, write `<stage>.json`, exit.

The exit code and the files in RUN_DIR are the whole answer: `<stage>.json` on success, else `error.json`, with the
message, the phase and the highest memory until then. Of several processes that train together the first writes the
result, and whichever fails first the error.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench.config import EXIT_CONFIGURATION, EXIT_ERROR, EXIT_OK, EXIT_OOM, ConfigurationError, RunConfig
from bench.identity import write_atomic
from bench.record import bundle_environment, from_json, to_json
from bench.worker.progress import Progress
from bench.worker.team import ALONE, Team

_OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory")  # PyTorch, the system, CUDA
_LOST_PEER = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
)  # another process of the run died


def main(folder: Path, stage: str) -> int:
    """Run a stage; returns the exit code."""
    config = from_json(RunConfig, (folder / "plan.json").read_bytes())
    team = Team.of_this_process() if config.hardware.devices > 1 and stage == "train" else ALONE
    progress = Progress(folder, stage, silent=not team.is_first)
    progress.phase("start")
    _confine(config, stage)
    try:
        started = time.perf_counter()
        module = importlib.import_module(f"bench.worker.stages.{stage}")  # a failing import is a recorded failure
        from bench.worker.stages.context import Context

        context = Context(folder, config, progress, team)
        context.clock.spans_seconds["import"] = time.perf_counter() - started
        _limit_memory(config)
        result = module.run(context)
        if team.is_first:
            write_atomic(folder / f"{stage}.json", json.dumps(result) if isinstance(result, dict) else to_json(result))
        team.leave()
        return EXIT_OK
    except ConfigurationError as error:
        _unlimit_memory()
        return _report(folder, progress, error, EXIT_CONFIGURATION, problems=error.problems)
    except Exception as error:
        _unlimit_memory()
        with contextlib.suppress(OSError):  # the log may be on a full disk
            traceback.print_exc()
        return _report(folder, progress, error, EXIT_OOM if is_out_of_memory(error) else EXIT_ERROR)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a lack of device or host memory."""
    import torch

    while error is not None:
        words = str(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, (RuntimeError, OSError)) and any(known in words for known in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return False


def _report(folder: Path, progress: Progress, error: Exception, code: int, **more: Any) -> int:
    lost_peer = any(words in str(error) for words in _LOST_PEER)
    if (folder / "error.json").exists() and (lost_peer or not _of_a_lost_peer(folder)):
        return code  # another process failed before this one, and said why
    content = {"message": f"{type(error).__name__}: {error}", "phase": progress.current_phase, "exit_code": code}
    content["lost_peer"] = lost_peer
    content |= more
    with contextlib.suppress(Exception):  # a device that failed may not answer any more
        content["peak_bytes"] = progress.peak_bytes()
    with contextlib.suppress(OSError):  # a full disk: the exit code and the log still tell
        write_atomic(folder / "error.json", json.dumps(content))
    return code


def _of_a_lost_peer(folder: Path) -> bool:
    """Whether what was said first is only that another process was gone."""
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads((folder / "error.json").read_text()).get("lost_peer"))
    return False


def _confine(config: RunConfig, stage: str) -> None:
    """Keep the child inside its folders, and let it die with its parent; only `bundle` may fill a bundle."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning: the parent answers it (running.job)
    with contextlib.suppress(AttributeError, OSError):
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)
    cache = Path(config.paths.cache).resolve()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "torchinductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    os.environ.setdefault("HF_DATASETS_CACHE", str(cache / "datasets"))
    if config.paths.bundle is not None:
        os.environ |= bundle_environment(Path(config.paths.bundle).resolve(), online=stage == "bundle")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["WANDB_DISABLED"] = "true"  # the parent tracks finished records; the child measures


def _limit_memory(config: RunConfig) -> None:
    """Let allocations beyond the limit fail, so that they are reported instead of disturbing the machine."""
    if config.hardware.memory_limit_gib is not None:
        limit_bytes = int(config.hardware.memory_limit_gib * 2**30)
        _, most = resource.getrlimit(resource.RLIMIT_DATA)  # of private memory, safetensors' maps of weights included
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, most))


def _unlimit_memory() -> None:
    """Make room to tell what went wrong."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
