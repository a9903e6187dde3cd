"""`python -m bench.worker RUN_DIR STAGE`: run one stage, write `<stage>.json`, exit.

The exit code and the files in RUN_DIR are the whole answer: `<stage>.json` on success, else `error.json`, with the
message, the phase and the highest memory until then. Of several processes that train together the first writes the
result, and whichever fails first the error.
"""

from __future__ import annotations

import ctypes
import gc
import gzip
import importlib
import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import RunConfig
from bench.identity import artifact_folder, changed_inputs, damaged, data_folder, is_whole, write_atomic
from bench.mistakes import ConfigurationError, refuse
from bench.outcome import EXIT_CONFIGURATION, EXIT_DIVERGED, EXIT_ERROR, EXIT_OK, EXIT_OOM
from bench.record import TrainResult, from_json, to_json
from bench.worker.instruments.clock import Clock, Load, open_load

if TYPE_CHECKING:
    from bench.worker.device import Device
    from bench.worker.instruments.memory import Memory
    from bench.worker.multi import Team

STAGES = {  # stage -> (module below bench.worker, function that takes the Context and returns the stage's result)
    "prepare": ("prepare", "run"),
    "fetch": ("prepare", "fetch"),
    "bundle": ("prepare", "fetch"),
    "train": ("train", "run"),
    "evaluate": ("evaluate", "run"),
    "regression": ("regression", "run"),
    "frontier": ("frontier", "run"),
    "weights": ("weights", "run"),
    "serve": ("serve", "run"),
    "export": ("prepare", "export"),
    "judge": ("gguf", "judge"),
    "check": ("prepare", "check"),
    "doctor": ("doctor", "run"),
    "count": ("reach", "count"),
}
_INTERVAL_SECONDS = 0.5


class DivergedError(ArithmeticError):
    """A loss, a gradient norm or a weight is not finite; `step` is the optimizer step after which that showed."""

    def __init__(self, what: str, step: int | None = None):
        self.step = step
        super().__init__(
            what if step is None else f"{what} at step {step}" if step else f"{what} before the first step"
        )


class Progress:
    """Writes `progress.json`: {stage, phase, done, total, peak_bytes, ...}.

    Attributes:
        peak_bytes: reads the highest memory of the stage so far; None until a memory instrument is opened.
        part: the part of the phase that runs (forward, backward, ...), for an error's message.
        checkpoint_step: the last step that the same command would not repeat, 0 while there is no checkpoint yet; None:
            none are written, and SIGTERM ends the process at once.

    Args:
        silent: write nothing, as all but the first of several processes.
    """

    def __init__(self, folder: Path, stage: str, silent: bool = False):
        self._silent = silent
        self._path = folder / "progress.json"
        self._content: dict[str, Any] = {"stage": stage, "phase": "start", "done": 0, "total": None}
        self._written = 0.0
        self.peak_bytes: Callable[[], int | None] = lambda: None
        self.part: str | None = None
        self.checkpoint_step: int | None = None

    @property
    def current_phase(self) -> str:
        """The part of the phase where one is named, else the phase."""
        return self.part or str(self._content["phase"])

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Announce what comes next; written at once."""
        self._content = {"stage": self._content["stage"], "phase": name, "done": done, "total": total}
        self.part = None
        self._write()

    def advance(self, done: int, **details: float | None) -> None:
        """Say how far the phase is; written at most twice a second."""
        self._content |= {"done": done, **details}
        if time.monotonic() - self._written >= _INTERVAL_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._silent:
            return
        temporary = self._path.with_suffix(".tmp")
        with suppress(OSError):  # a full disk costs the news, not the run
            known = {"peak_bytes": self.peak_bytes(), "checkpoint_step": self.checkpoint_step}
            temporary.write_text(json.dumps(self._content | known))
            os.replace(temporary, self._path)
        self._written = time.monotonic()


@dataclass
class Context:
    """A stage's folder, configuration and instruments."""

    folder: Path
    config: RunConfig
    progress: Progress
    team: Team = field(default_factory=lambda: importlib.import_module("bench.worker.multi").ALONE)  # of one process
    clock: Clock = field(default_factory=Clock)
    load: Load = field(default_factory=Load)

    def measure_on(self, resolved: Device) -> Memory:
        """Point the instruments at the device, before anything is loaded on it."""
        self.clock.synchronize = resolved.synchronize
        self.load = open_load(resolved.type, self.team.family)
        from bench.worker.instruments.memory import open_memory

        memory = open_memory(resolved.type)
        self.progress.peak_bytes = memory.peak_so_far_bytes
        return memory

    @property
    def cache(self) -> Path:
        return Path(self.config.paths.cache)

    @property
    def weights(self) -> Path:
        given = self.config.method.loaded_from
        return Path(given) if given else artifact_folder(self.config)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write gzipped JSON lines, whole or not at all; without a time stamp: equal content gives equal files."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, gzip.compress(lines.encode(), mtime=0))


# PyTorch, the system, CUDA, cuBLAS for its handle and workspace
_OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
_UNDER_A_LIMIT = ("could not create a primitive", "could not create a memory", "bad_alloc", "can't start new thread")
_LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")  # another process died


def main(folder: Path, stage: str) -> int:
    """Run a stage; returns the exit code."""
    config = from_json(RunConfig, (folder / "plan.json").read_bytes())
    together = config.hardware.devices > 1 and stage == "train"
    progress = Progress(folder, stage, silent=together and os.environ.get("RANK", "0") != "0")
    progress.phase("start")
    _confine(config, stage)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    try:
        started = time.perf_counter()
        module, function = STAGES[stage]
        gc.disable()  # imports make no garbage, and looking for it takes a fifth of their time
        run = getattr(importlib.import_module(f"bench.worker.{module}"), function)  # a failure to import is recorded
        gc.enable()
        from bench.worker.multi import ALONE, Team

        team = Team.of_this_process() if together else ALONE
        context = Context(folder, config, progress, team)
        context.clock.spans_seconds["import"] = time.perf_counter() - started
        refuse_changed_inputs(config, folder, stage)
        _limit_memory(config.hardware.memory_limit_gib)
        result = run(context)
        if team.is_first:
            write_atomic(folder / f"{stage}.json", json.dumps(result) if isinstance(result, dict) else to_json(result))
        team.leave()
        return EXIT_OK
    except ConfigurationError as error:
        return _report(folder, progress, error, EXIT_CONFIGURATION, problems=error.problems)
    except DivergedError as error:
        return _report(folder, progress, error, EXIT_DIVERGED, step=error.step)
    except Exception as error:
        _limit_memory(None)
        with suppress(OSError):  # the log may be on a full disk
            traceback.print_exc()
        limited = config.hardware.memory_limit_gib is not None
        return _report(folder, progress, error, EXIT_OOM if is_out_of_memory(error, limited) else EXIT_ERROR)


def refuse_changed_inputs(config: RunConfig, folder: Path, stage: str) -> None:
    """Hold what a stage reads against what the run is named by, and what earlier stages wrote against their checksums.

    Raises:
        ConfigurationError: with every file or part that is another.
    """
    problems, kept = changed_inputs(config, stage), Path(config.paths.cache)
    if stage in ("train", "evaluate", "frontier", "serve") and not is_whole(data_folder(config), kept):
        problems.append(
            f"{data_folder(config)}: prepared data are gone or changed; the same command prepares them again"
        )
    if stage in ("evaluate", "regression", "frontier", "weights", "serve") and not config.untrained:
        trained, weights = from_json(TrainResult, (folder / "train.json").read_bytes()), artifact_folder(config)
        lost = ", ".join(damaged(weights, trained.weights, kept))
        problems += [f"{weights}: not as training wrote it: {lost}; the same command trains again"] if lost else []
    refuse(problems)


def is_out_of_memory(error: BaseException, limited: bool = False) -> bool:
    """Whether an error, or what caused it, is a lack of device or host memory.

    Args:
        limited: the process has a limit on its memory: some libraries then fail without a word about memory.
    """
    import torch

    of_memory = (*_OUT_OF_MEMORY, *_UNDER_A_LIMIT) if limited else _OUT_OF_MEMORY
    while error is not None:
        words = str(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, (RuntimeError, OSError)) and any(known in words for known in of_memory):
            return True
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return False


def _report(folder: Path, progress: Progress, error: Exception, code: int, **more: Any) -> int:
    """Write `error.json` and return the code; of several processes the first failure stays, if it has its own cause."""
    _limit_memory(None)
    file = folder / "error.json"
    lost_peer = any(words in str(error) for words in _LOST_PEER)
    before: dict[str, Any] = {"lost_peer": True}
    with suppress(OSError, ValueError):
        before = json.loads(file.read_text())
    if file.exists() and (lost_peer or not before.get("lost_peer")):
        return code
    content = {"message": f"{type(error).__name__}: {error}", "phase": progress.current_phase, "exit_code": code}
    content |= {"lost_peer": lost_peer, **more}
    with suppress(Exception):  # a device that failed may not answer any more
        content["peak_bytes"] = progress.peak_bytes()
    with suppress(OSError):  # a full disk: the exit code and the log still tell
        write_atomic(file, json.dumps(content))
    return code


def _confine(config: RunConfig, stage: str) -> None:
    """Keep the child inside its folders, and let it die with its parent; only `bundle` may fill a bundle."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning: the parent answers it
    die_with_parent()
    cache = Path(config.paths.cache).resolve()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "torchinductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    os.environ.setdefault("HF_DATASETS_CACHE", str(cache / "datasets"))
    if config.paths.bundle is not None:
        os.environ |= bundle_environment(Path(config.paths.bundle).resolve(), online=stage == "bundle")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # cuDNN attention plans each new (batch, length) for 0.2 s; the other kernels are as fast (docs/maintainers/gpu.md).
    os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    # Lengths change at each step: blocks of fixed size left a third of what the allocator held unused (as above).
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    os.environ["WANDB_DISABLED"] = "true"  # the parent tracks finished records; the child measures


def bundle_environment(folder: Path, online: bool) -> dict[str, str]:
    """The environment in which Hugging Face's libraries and NLTK use a bundle, and nothing else unless `online`."""
    names = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "NLTK_DATA": "nltk"}
    there = {variable: str(folder / name) for variable, name in names.items()}
    return there if online else there | {"HF_HUB_OFFLINE": "1"}


def die_with_parent() -> None:
    """Let Linux end this process by SIGTERM when its parent ends."""
    with suppress(AttributeError, OSError):
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)


def _limit_memory(limit_gib: float | None) -> None:
    """Let allocations beyond the limit fail, so that they are reported; None lifts it, to make room for the report."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)  # of private memory, safetensors' maps of weights included
    limit = most if limit_gib is None else int(limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
