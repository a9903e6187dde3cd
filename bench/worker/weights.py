"""A model's weights on disk, and hashes of what an export depends on: base, tokenizer, chat template.

>>> base_digest(Path("cache/models/smollm2-135m-0.1.2"))
'5f0c...'
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bench.worker import models
from bench.worker.main import Context

_OF_A_TOKENIZER = ("model", "added_tokens", "normalizer", "pre_tokenizer")  # padding and truncation are the caller's


def run(context: Context) -> dict[str, Any]:
    """The export stage: the base's tokenizer in `tokenizer/`, and hashes of its weights and of the prompt format."""
    model = context.config.model
    context.progress.phase("base")
    source = models.fetch(model, context.cache)
    tokenizer = models.load_tokenizer(model, source)
    tokenizer.save_pretrained(context.folder / "tokenizer")
    context.progress.phase("hashes")
    return {
        "weights_sha256": base_digest(models.local_folder(model, source)),
        "chat_template_sha256": _sha256(str(tokenizer.chat_template)),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors that make a model or an adapter; others beside them (another layout of it) are left out."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    named = [folder / name for name in ("model.safetensors", "adapter_model.safetensors")]
    return [path for path in named if path.exists()] or sorted(folder.glob("*.safetensors"))


def base_digest(folder: Path) -> str:
    """SHA-256 over the weights, file after file by name, in hex."""
    hashed = hashlib.sha256()
    for path in sorted(weight_files(folder)):
        with path.open("rb") as file:
            while block := file.read(2**20):
                hashed.update(block)
    return hashed.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what decides which tokens a text becomes, in hex."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        parts = {name: content.get(name) for name in _OF_A_TOKENIZER}
    else:
        parts = {"vocabulary": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _sha256(json.dumps([parts, special], sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
