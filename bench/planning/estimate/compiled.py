"""What a compiled decoder layer keeps for the backward pass.

The compiler keeps the inputs of matrix products and what is cheap, and computes norms, activations and rotations
again (min-cut partitioning, torch._functorch.partitioners). So there is no formula to read off the code: this is what
saved-tensor hooks showed of torch 2.13's layers for each method (tests/worker/test_planner_saved.py, slow).
"""

from __future__ import annotations

from bench.planning.estimate.activations import Batch, Saved
from bench.planning.estimate.numerics import Numerics
from bench.spec.architecture import ArchitectureConfig


def saved_by_compiled_layer(architecture: ArchitectureConfig, numerics: Numerics, batch: Batch) -> Saved:
    """Tensor -> bytes, for a layer behind the first one."""
    a, n = architecture, numerics
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    repeated = n.attention == "eager" or (n.attention == "sdpa" and batch.padded)
    reads_first = n.trains_all or any(f"self_attn.{part}_proj" in n.adapted for part in "qkv")
    reads_second = n.trains_all or any(f"mlp.{part}_proj" in n.adapted for part in ("gate", "up"))
    per_position = {
        "residual": a.hidden_size * n.weights,
        "residual.middle": a.hidden_size * n.compute,  # with an fp32 stream: the attention's output, 16-bit, instead
        "rsqrt": 2 * 4,
        "normed": (reads_first + reads_second) * a.hidden_size * n.compute,  # one copy for all layers that read it
        "query": queries * n.compute,
        "key": (queries if repeated else keys) * n.compute,
        "value": (queries if repeated else keys) * n.compute,
        "attention": queries * n.compute,
        "gate": a.intermediate_size * n.compute,
        "up": a.intermediate_size * n.compute,
        "A": len(n.adapted) * n.rank * n.compute,
    }
    if n.trains_all or "mlp.down_proj" in n.adapted:
        per_position["product"] = a.intermediate_size * n.compute
    if "self_attn.o_proj" in n.adapted:
        per_position["self_attn.o_proj.input"] = queries * n.compute
    if a.model_type == "qwen3":
        per_position["head norms"] = (queries + keys) * n.compute + 4 * (a.num_attention_heads + a.num_key_value_heads)
    if n.attention == "eager":
        per_position["scores"] = a.num_attention_heads * batch.length * (4 + n.compute)
    else:
        per_position["logsumexp"] = a.num_attention_heads * 4
        if repeated:
            per_position["mask"] = batch.length * n.compute
    return {name: batch.positions * size for name, size in per_position.items()}
