"""A quantized base, made once and mapped from the cache by every stage and run that needs it.

Quantizing while loading reads the 16-bit file, and the pages that were read stay in the process's resident memory for
as long as anything maps that file: QLoRA would carry the 16-bit weights as well. A stored copy is read as it is used.

    cache/quantized/smollm2-135m-0.1.2-nf4-double-cpu-bfloat16/    safetensors and config, as transformers writes them
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from bench.config import RunConfig
from bench.worker.models import make_once


def stored(
    config: RunConfig,
    source: str,
    device: str,
    dtype: torch.dtype,
    storage: torch.dtype,
    quantize: Callable[[], Any],
) -> tuple[Path, str | None] | None:
    """(folder of the quantized base, the hub commit that it was made from); None for models that may change.

    Args:
        source: what `models.locate` gave.
        device, dtype: where and to what the base is quantized; processors round differently.
        storage: of the elements that 4-bit weights are packed into.
        quantize: loads the base with its quantization; called when nothing is stored yet.
    """
    quantization = config.method.quantization
    name, commit = origin(config, source)
    if quantization is None or name is None:
        return None
    scheme = quantization.scheme + ("-double" if quantization.double_quantization else "")
    stored_name = f"{name}-{scheme}-{device}-{str(dtype).removeprefix('torch.')}"
    if storage is not torch.uint8:
        stored_name += f"-in-{str(storage).removeprefix('torch.')}"
    folder = Path(config.paths.cache) / "quantized" / stored_name
    return make_once(folder, lambda target: quantize().save_pretrained(target)), commit


def origin(config: RunConfig, source: str) -> tuple[str | None, str | None]:
    """(a name for exactly these weights, their hub commit); no name for a folder, whose content may change."""
    model = config.model
    if model.source in ("gguf_package", "random"):
        return Path(source).name, None
    if model.source == "hub":
        options = {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}
        commit = getattr(AutoConfig.from_pretrained(source, **options), "_commit_hash", None)
        return (f"{model.name}-{commit[:12]}" if commit else None), commit
    return None, None
