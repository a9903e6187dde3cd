"""Whether the disks hold what runs will write: the model, its 4-bit form, every run's weights, served forms.

What is there already is not counted: files in the hub's cache, bases that were quantized before.

>>> findings(needed(configs))[0].found
'60.3 GiB are needed in cache and artifacts (the model llama-3.1-8b 15.0, weights of full 45.0, ...), 20.1 are free'
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.config import RunConfig
from bench.identity import training_key
from bench.machine import Finding
from bench.mistakes import ConfigurationError
from bench.planner.advice import architecture_of
from bench.planner.tensors import adapter_tensors

GIB = 2**30
BYTES_16_BIT = 2  # of a parameter, as models are downloaded and full fine-tuning is kept
BYTES_4_BIT = 0.7  # of a parameter: 4 bit with constants, embeddings in 16 bit
BYTES_ADAPTER = 4
BYTES_RESUMED = 24  # of a trained parameter: fp32 weights and Adam's state, while two checkpoints are there
_MEND = "free some space, or name another folder (HF_HOME, paths.cache, paths.artifacts)"


@dataclass(frozen=True)
class Need:
    """Something that will be written."""

    what: str
    folder: Path
    size_bytes: float


def findings(needs: Iterable[Need]) -> list[Finding]:
    """What is broken: each disk that is too small, with what needs it; else that all is fine."""
    by_disk: dict[int, list[Need]] = defaultdict(list)
    for need in needs:
        by_disk[_existing(need.folder).stat().st_dev].append(need)
    broken, total = [], 0.0
    for group in by_disk.values():
        gib: dict[str, float] = defaultdict(float)
        for need in group:
            gib[need.what] += need.size_bytes / GIB
        needed_gib, free_gib = sum(gib.values()), free_bytes(group[0].folder) / GIB
        total += needed_gib
        if needed_gib > free_gib:
            where = " and ".join(dict.fromkeys(str(need.folder) for need in group))
            parts = ", ".join(f"{what} {size:.1f}" for what, size in gib.items())
            told = f"{needed_gib:.1f} GiB are needed in {where} ({parts}), {free_gib:.1f} are free"
            broken.append(Finding("disk", "broken", told, _MEND))
    return broken or [Finding("disk", "fine", f"room for the {total:.1f} GiB that will be written")]


def needed(configs: Sequence[RunConfig]) -> list[Need]:
    """What the runs will write that is large, each thing once; a model of unknown size is left out."""
    found: dict[str, Need] = {}
    in_turn: list[Need] = []  # there for one run at a time
    for config in (config for config in configs if config.model.parameters is not None):
        method, artifacts = config.method, Path(config.paths.artifacts)
        found |= {need.what: need for need in (model_need(config), _quantized(config))}
        if config.untrained:
            continue
        trained = _trained_parameters(config)
        if config.trial is None:
            each = BYTES_ADAPTER if method.adapter else BYTES_16_BIT
            kept = 1 + len(set(config.evaluation.points) - {1.0})
            found[training_key(config)] = Need(f"weights of {method.name}", artifacts, kept * each * trained)
        if config.train.checkpoint_every_steps is not None:
            in_turn.append(Need("checkpoints of one run", artifacts, BYTES_RESUMED * trained))
        if config.serve.prompt_tokens:
            in_turn.append(Need("served forms of one run", artifacts, _served_bytes(config)))
    largest = sorted(in_turn, key=lambda need: need.size_bytes)[-1:]
    return [need for need in [*found.values(), *largest] if need.size_bytes]


def model_need(config: RunConfig, hub: Path | None = None) -> Need:
    """The 16-bit weights, less what is there of them.

    Args:
        hub: the hub's cache, where it is not the usual one.
    """
    model, size = config.model, BYTES_16_BIT * (config.model.parameters or 0)
    folder = Path(config.paths.cache) / "models"
    if model.source == "hub" and (hub or config.paths.bundle is None):
        from huggingface_hub.constants import HF_HUB_CACHE

        folder = hub or Path(HF_HUB_CACHE)
        blobs = (folder / f"models--{model.location.replace('/', '--')}" / "blobs").glob("*")
        size = max(0, size - sum(path.stat().st_size for path in blobs))
    elif model.source not in ("gguf_package", "random") or list(folder.glob(f"{model.name}*")):
        size = 0
    return Need(f"the model {model.name}", folder, size)


def _quantized(config: RunConfig) -> Need:
    """The base in few bits, which is kept for the runs that share it."""
    model, scheme = config.model, config.method.quantization and config.method.quantization.scheme
    folder = Path(config.paths.cache) / "quantized"
    made = model.source == "folder" or list(folder.glob(f"{model.name}-*{scheme}*"))
    return Need(
        f"{model.name} in {scheme}", folder, BYTES_4_BIT * (model.parameters or 0) if scheme and not made else 0
    )


def _trained_parameters(config: RunConfig) -> int:
    """Of an adapter on an architecture that the planner does not know: none, it is small."""
    if config.method.adapter is None:
        return config.model.parameters or 0
    with suppress(ConfigurationError):
        return sum(adapter_tensors(architecture_of(config.model, config.paths), config.method.adapter))
    return 0


def _served_bytes(config: RunConfig) -> float:
    """As `worker.methods.served_forms` builds them: quantized; of an adapter merged too, into both quantized bases."""
    bases = 1 if config.method.quantization is None else 2
    return (config.model.parameters or 0) * bases * (BYTES_4_BIT + (BYTES_16_BIT if config.method.adapter else 0))


def free_bytes(folder: Path) -> int:
    """Free disk space where a folder is or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
