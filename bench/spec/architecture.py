"""The numbers of a transformer decoder, by their names in transformers' `config.json`.

They stand in `conf/model/` for the planner alone: a run reads its architecture from the weights that it loads, so
they are no part of its identity.

>>> read_architecture({"model_type": "llama", "hidden_size": 64, ...}).head_dim
16
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

ModelType = Literal["llama", "mistral", "qwen2", "qwen3"]
_Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ArchitectureConfig:
    """A decoder of gated feed-forward layers and grouped attention under RMS norms."""

    model_type: ModelType
    vocab_size: _Count
    hidden_size: _Count
    intermediate_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count
    num_key_value_heads: _Count
    head_dim: _Count
    tie_word_embeddings: bool  # the output head is the embedding
    attention_bias: bool = False
    mlp_bias: bool = False


def read_architecture(content: Mapping[str, Any]) -> ArchitectureConfig:
    """The architecture that a model's `config.json` describes.

    Raises:
        ValueError: another kind of model, or numbers that are not there; the message says which.
    """
    kind = content.get("model_type")
    if kind not in get_args(ModelType):
        raise ValueError(f"model_type {kind!r} is not one that the planner knows; allowed: {', '.join(_KNOWN)}")
    heads, hidden = content.get("num_attention_heads"), content.get("hidden_size")
    filled: dict[str, Any] = {"tie_word_embeddings": False, "num_key_value_heads": heads}  # transformers' defaults
    if heads and hidden:
        filled["head_dim"] = hidden // heads
    filled |= {name: content[name] for name in _NAMES if content.get(name) is not None}
    missing = [f.name for f in fields(ArchitectureConfig) if f.name not in filled and f.default is MISSING]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing")
    return ArchitectureConfig(**filled)


_KNOWN = get_args(ModelType)
_NAMES = tuple(f.name for f in fields(ArchitectureConfig))
