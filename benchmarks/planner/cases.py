"""The runs that the estimates are held against: sizes, lengths, ranks, methods, compiled or not."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = {  # of models with random weights, in transformers' terms; "embedded" is SmolLM2-135M
    "5m": {"model_type": "llama", "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768,
           "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
           "tie_word_embeddings": True},
    "42m": {"model_type": "llama", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1536,
            "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
            "tie_word_embeddings": False},
    "qwen-34m": {"model_type": "qwen3", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1536,
                 "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
                 "tie_word_embeddings": True},
    # of kinds that are counted on the meta device
    "gemma3": {"model_type": "gemma3_text", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1536,
               "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
               "sliding_window": 256},
    "phi3": {"model_type": "phi3", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1536,
             "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4},
    "mixtral": {"model_type": "mixtral", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 768,
                "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 4,
                "num_experts_per_tok": 2},
    "gpt2": {"model_type": "gpt2", "vocab_size": 16384, "n_embd": 512, "n_layer": 6, "n_head": 8,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}  # fmt: skip
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Case:
    """One short run."""

    size: str
    method: str
    length: int  # about so many tokens an example; what was consumed is read from the record
    micro_batch: int
    compile: str = "off"
    more: tuple[str, ...] = ()  # further overrides

    @property
    def name(self) -> str:
        """For the table and for --only."""
        shape = f"{self.micro_batch}x{self.length}"
        short = [text.rpartition(".")[2] for text in self.more]
        compiled = "compiled" if self.compile == "regional" else "eager"
        return " ".join([self.size, self.method, shape, compiled, *short])


CASES = (
    *(Case("5m", method, 256, 4) for method in ("full", "lora", "qlora")),
    Case("5m", "lora", 256, 4, "regional"),
    *(Case("42m", method, 512, 4) for method in ("full", "full_bf16", "full_adam8bit", "lora", "qlora")),
    *(Case("42m", method, 512, 4, "regional") for method in ("full", "lora", "qlora")),
    Case("42m", "lora", 1024, 4),
    Case("42m", "lora", 512, 1),
    Case("42m", "lora", 512, 4, more=("method.adapter.rank=128",)),
    Case("42m", "lora", 512, 4, more=("method.adapter.target_modules=[q_proj,v_proj]",)),
    Case("42m", "lora", 1024, 4, more=("train.gradient_checkpointing=true",)),
    Case("42m", "full", 1024, 4, more=("train.gradient_checkpointing=true",)),
    Case("42m", "lora", 512, 4, more=("hardware.attention=eager",)),
    Case("qwen-34m", "full", 512, 4),
    Case("qwen-34m", "lora", 512, 4),
    *(Case(EMBEDDED, method, 256, 4) for method in ("full", "lora", "qlora")),
    *(Case(EMBEDDED, method, 256, 4, "regional") for method in ("full", "lora", "qlora")),
    Case(EMBEDDED, "lora", 512, 4),
    Case(EMBEDDED, "lora", 512, 4, "regional"),
    *(Case(kind, method, 512, 4) for kind in ("gemma3", "phi3", "mixtral", "gpt2") for method in ("full", "lora")),
)
