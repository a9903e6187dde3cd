"""What an export needs of the base: its tokenizer, written to `tokenizer/`, and the hashes of both."""

from __future__ import annotations

import json
from typing import Any

from bench.worker import models
from bench.worker.exported import (
    answer_digest,
    base_digest,
    chat_template_digest,
    local_folder,
    tokenizer_digest,
)
from bench.worker.stages.context import Context


def run(context: Context) -> dict[str, Any]:
    """Hashes of the base, of the prompt format, and of the answers in `answers.json`, which the parent put there."""
    config = context.config
    context.progress.phase("base")
    source = models.fetch(config.model, context.cache)
    tokenizer = models.load_tokenizer(config.model, source)
    tokenizer.save_pretrained(context.folder / "tokenizer")
    context.progress.phase("hashes")
    answers = [answer_digest(text) for text in json.loads((context.folder / "answers.json").read_bytes())]
    return {
        "weights_sha256": base_digest(local_folder(config.model, source)),
        "chat_template_sha256": chat_template_digest(tokenizer),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "answers_sha256": answers,
    }
