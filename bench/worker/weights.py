"""Hashes of what an exported model depends on: its base's weights, its tokenizer, its chat template.

>>> chat_template_digest(tokenizer)
'5f0c...'
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from bench.config import ModelConfig
from bench.identity import weights_sha256
from bench.worker import models
from bench.worker.main import Context

_OF_A_TOKENIZER = ("model", "added_tokens", "normalizer", "pre_tokenizer")  # padding and truncation are the caller's


def local_folder(model: ModelConfig, source: str) -> Path:
    """The folder of a base that has been fetched.

    Args:
        source: from `models.locate`: a folder, or a name on the hub.
    """
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, revision=model.revision, local_files_only=True))


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


def chat_template_digest(tokenizer: Any) -> str:
    """SHA-256 of the chat template's text, in hex."""
    return _sha256(str(tokenizer.chat_template))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def run(context: Context) -> dict[str, Any]:
    """Hashes of the base and of the prompt format; the tokenizer goes into the run's folder."""
    config = context.config
    context.progress.phase("base")
    source = models.fetch(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    tokenizer.save_pretrained(context.folder / "tokenizer")
    context.progress.phase("hashes")
    return {
        "weights_sha256": weights_sha256(local_folder(config.model, source)),
        "chat_template_sha256": chat_template_digest(tokenizer),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }
