"""Whether the disks hold what runs will write: the model, its 4-bit form, every run's weights, served forms.

What is there already is not counted: files in the hub's cache, bases that were quantized before.

>>> problems(configs)
['disk: 60.3 GiB are needed in /data (the model llama-3.1-8b 15.0, weights of full 45.0, ...), and 20.1 are free; ...']
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.config import ConfigurationError, RunConfig
from bench.identity import training_key
from bench.machine import free_bytes
from bench.planner.advice import architecture_of
from bench.planner.tensors import adapter_tensors
from bench.record import Finding

GIB = 2**30
BYTES_16_BIT = 2  # of a parameter, as models are downloaded and full fine-tuning is kept
BYTES_4_BIT = 0.7  # of a parameter: 4 bit with constants, embeddings in 16 bit
BYTES_ADAPTER = 4
BYTES_RESUMED = 12  # of a trained parameter, in a checkpoint to resume from: fp32 weights and Adam's state
_CHECKPOINTS_AT_ONCE = 2  # the older one goes when the new one is whole
_MEND = "free some space, or name another folder (HF_HOME, paths.cache, paths.artifacts)"


@dataclass(frozen=True)
class Need:
    """Something that will be written."""

    what: str
    folder: Path
    size_bytes: float


def problems(configs: Sequence[RunConfig]) -> list[str]:
    """One line for each disk that is too small for what the runs will write."""
    return too_small(needed(configs))


def too_small(everything: Sequence[Need]) -> list[str]:
    """One line for each disk that is too small, with what needs it."""
    lines = []
    for needs in _by_disk(everything):
        size, free = sum(need.size_bytes for need in needs), free_bytes(needs[0].folder)
        if size > free:
            totals: dict[str, float] = defaultdict(float)
            for need in needs:
                totals[need.what] += need.size_bytes / GIB
            parts = ", ".join(f"{what} {gib:.1f}" for what, gib in totals.items())
            where = " and ".join(dict.fromkeys(str(need.folder) for need in needs))
            told = f"disk: {size / GIB:.1f} GiB are needed in {where} ({parts}), and {free / GIB:.1f} are free"
            lines.append(f"{told}; {_MEND}")
    return lines


def findings(configs: Sequence[RunConfig]) -> list[Finding]:
    """The same for the doctor."""
    broken = [Finding("disk", "broken", line.removeprefix("disk: ").removesuffix(f"; {_MEND}"), _MEND)
              for line in problems(configs)]  # fmt: skip
    size, free = sum(need.size_bytes for need in needed(configs)), free_bytes(Path(configs[0].paths.artifacts))
    return broken or [Finding("disk", "fine", f"{size / GIB:.1f} GiB to be written, {free / GIB:.1f} free")]


def needed(configs: Sequence[RunConfig]) -> list[Need]:
    """What the runs will write that is large, each thing once; a model of unknown size is left out."""
    found: dict[tuple[str, ...], Need] = {}
    resumed: list[Need] = []
    for config in (config for config in configs if config.model.parameters is not None):
        artifacts = Path(config.paths.artifacts)
        for need in (model_need(config), _quantized(config)):
            found[need.what, str(need.folder)] = need
        trained = 0 if config.untrained else _trained_parameters(config)
        if trained and config.trial is None:
            each = BYTES_ADAPTER if config.method.adapter else BYTES_16_BIT
            found[training_key(config), ""] = Need(f"weights of {config.method.name}", artifacts, each * trained)
        if config.train.checkpoint_every_steps is not None:
            size = _CHECKPOINTS_AT_ONCE * BYTES_RESUMED * trained
            resumed.append(Need("checkpoints of one run", artifacts, size))
        if config.serve.prompt_tokens and not config.untrained:  # built for one run at a time
            resumed.append(Need("served forms of one run", artifacts, _served(config)))
    largest = sorted(resumed, key=lambda need: need.size_bytes)[-1:]
    return [need for need in [*found.values(), *largest] if need.size_bytes]


def _by_disk(needs: Sequence[Need]) -> list[list[Need]]:
    groups: dict[int, list[Need]] = defaultdict(list)
    for need in needs:
        groups[_device(need.folder)].append(need)
    return list(groups.values())


def _device(folder: Path) -> int:
    return os.stat(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).st_dev


def model_need(config: RunConfig, hub: Path | None = None) -> Need:
    """The 16-bit weights, less what is there of them.

    Args:
        hub: the hub's cache, where it is not the usual one.
    """
    model, size = config.model, BYTES_16_BIT * (config.model.parameters or 0)
    what = f"the model {model.name}"
    if model.source == "hub" and (hub or config.paths.bundle is None):
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = hub or Path(HF_HUB_CACHE)
        blobs = cache / f"models--{model.location.replace('/', '--')}" / "blobs"
        return Need(what, cache, max(0, size - sum(path.stat().st_size for path in blobs.glob("*"))))
    cache = Path(config.paths.cache) / "models"
    made = model.source not in ("gguf_package", "random") or list(cache.glob(f"{model.name}*"))
    return Need(what, cache, 0 if made else size)


def _quantized(config: RunConfig) -> Need:
    """The base in few bits, which is kept for the runs that share it."""
    model, quantization = config.model, config.method.quantization
    folder = Path(config.paths.cache) / "quantized"
    scheme = quantization.scheme if quantization else ""
    kept = quantization and model.source != "folder" and not list(folder.glob(f"{model.name}-*{scheme}*"))
    return Need(f"{model.name} in {scheme}", folder, BYTES_4_BIT * (model.parameters or 0) if kept else 0)


def _trained_parameters(config: RunConfig) -> int:
    """Of an adapter on an architecture that the planner does not know: none, it is small."""
    if config.method.adapter is None:
        return config.model.parameters or 0
    with suppress(ConfigurationError):
        return sum(adapter_tensors(architecture_of(config.model), config.method.adapter))
    return 0


def _served(config: RunConfig) -> float:
    """As `worker.methods.served_forms` builds them: quantized; of an adapter merged, into a quantized base's two."""
    bases = 1 if config.method.quantization is None else 2
    return (config.model.parameters or 0) * bases * (BYTES_4_BIT + (BYTES_16_BIT if config.method.adapter else 0))
