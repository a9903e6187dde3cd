"""What an exported model says of itself: its files with their hashes, its base, its prompt format and its scores.

`bench-manifest.json` lies in the exported folder. It guards against accidents (a file cut short, another base, an
edited chat template), not against forgery: who can change the files can change the manifest.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from bench.spec.record import Environment

MANIFEST = "bench-manifest.json"
CARD = "README.md"  # may be edited: it is not part of what is verified
MANIFEST_VERSION = 1
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class ExportedFile:
    """One file as it was exported."""

    bytes: int
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class Base:
    """The model that was tuned."""

    name: str
    source: str  # as in the configuration: hub, gguf_package, folder, random
    location: str
    revision: str | None  # hub commit; None for local models
    weights_sha256: str  # over its .safetensors, one after the other, by name


@dataclass(frozen=True, config=_STRICT)
class PromptFormat:
    """How text becomes the tokens that the model was trained and evaluated on."""

    chat_template_sha256: str
    tokenizer_sha256: str  # vocabulary, merges, normalization, added tokens
    data_fingerprint: str  # over the tokenized splits: equal exactly when every prompt becomes the same tokens


@dataclass(frozen=True, config=_STRICT)
class ScoreInterval:
    """A score with its 95% interval over the test examples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, config=_STRICT)
class Evaluated:
    """What was measured on the test split."""

    examples: int
    scores: dict[str, ScoreInterval]
    test_loss: float | None  # nats a token
    answers_sha256: list[str]  # the first 12 hex digits of each greedy answer's hash, in the split's order
    environment: Environment


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """An exported adapter or model."""

    run_id: str
    kind: Literal["adapter", "model"]
    config: dict[str, Any]  # of the run (`config.to_mapping`); the machine's paths are left out
    base: Base
    prompt: PromptFormat
    evaluated: Evaluated
    data_stream_sha256: str | None  # the tokens that training consumed
    command: str  # that made the run
    git_commit: str | None
    packages: dict[str, str | None]
    exported_at: str  # ISO 8601, UTC
    license: str | None  # of the weights, as the exporter stated it
    files: dict[str, ExportedFile]  # by path inside the folder, this manifest left out
    form: str | None = None  # of serving (merged, merged_nf4, ...); None: as it was trained
    schema_version: int = MANIFEST_VERSION
