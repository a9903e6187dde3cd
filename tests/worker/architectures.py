"""Model folders of every architecture that the tests know: two layers of width 64, random weights, a byte tokenizer.

>>> make("gpt2", folder, tokenizer)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf

WIDTH = {"hidden_size": 64, "num_hidden_layers": 2}
PLAIN = {**WIDTH, "num_attention_heads": 4}
GATED = {**PLAIN, "num_key_value_heads": 2, "intermediate_size": 128}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
LOCAL = {**GATED, "head_dim": 16, "sliding_window": 24}

CONFIGS: dict[str, tuple[type[tf.PretrainedConfig], dict[str, Any]]] = {
    "llama": (tf.LlamaConfig, GATED),
    "llama-tied": (tf.LlamaConfig, {**GATED, "tie_word_embeddings": True}),
    "gpt2": (tf.GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4, **NO_DROPOUT}),  # Conv1D, learned positions
    "opt": (
        tf.OPTConfig,
        {**PLAIN, "ffn_dim": 128, "word_embed_proj_dim": 64, "dropout": 0.0},
    ),  # LayerNorm, learned positions
    "phi3": (tf.Phi3Config, GATED),  # fused projections
    "gemma2": (tf.Gemma2Config, LOCAL),  # local and global layers
    "gemma3": (tf.Gemma3TextConfig, LOCAL),
    "mixtral": (tf.MixtralConfig, {**GATED, "num_local_experts": 4}),  # experts as 3-D parameters, a router
    "mamba": (tf.MambaConfig, {**WIDTH, "state_size": 8}),  # states instead of attention
    "bloom": (tf.BloomConfig, {"hidden_size": 64, "n_layer": 2, "n_head": 4}),  # ALiBi
}


def make(name: str, folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """Write a model folder; `changes` go into the configuration."""
    kind, settings = CONFIGS[name]
    ids = {f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("bos", "eos", "pad")}
    config = kind(**settings, vocab_size=len(tokenizer), **changes)
    config.update(ids)
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # wide enough for positions and contexts to matter
            if parameter.ndim > 1 and name != "mamba":
                parameter.mul_(4)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
