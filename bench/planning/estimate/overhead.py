"""What a training process takes beside its tensors: measured where it could be, else assumed, and said which."""

from __future__ import annotations

from bench.planning.estimate.numerics import Numerics
from bench.planning.estimate.terms import Terms

MIB = 2**20
# CUDA: assumed. The context with its kernels, and cuBLAS' workspace (32 MiB on Hopper, 8 MiB before: PyTorch's notes
# on CUBLAS_WORKSPACE_CONFIG).
CUDA_PROCESS_BYTES = 600 * MIB
# CUDA: assumed. What the caching allocator reserves beyond what is allocated, as a part of what comes and goes.
CUDA_ALLOCATOR_SHARE = 0.05
# CPU: measured, on Linux with glibc (docs/planner.md). The process: the peak of runs whose freed tensors go back to the
# system at once, less the terms with a formula. The compiler, and what malloc keeps of freed tensors as a part of those
# that come and go in the layers: the median of the compiled and of the eager runs of the 42M model, rounded.
CPU_PROCESS_BYTES = 545 * MIB
CPU_COMPILER_BYTES = 110 * MIB
CPU_MALLOC_SHARE_EAGER = 0.5
CPU_MALLOC_SHARE_COMPILED = 0.25


def process_bytes(numerics: Numerics) -> int:
    """Bytes that are taken before a model is loaded: the CUDA context, or Python with torch, transformers and PEFT."""
    if numerics.device == "cuda":
        return CUDA_PROCESS_BYTES
    return CPU_PROCESS_BYTES + (CPU_COMPILER_BYTES if numerics.compiled else 0)


def allocator_bytes(numerics: Numerics, live: Terms) -> int:
    """Bytes that the allocator holds and nothing uses."""
    if numerics.device == "cuda":
        moving = live.gradients + live.activations + live.casts + live.logits + live.workspace
        return round(moving * CUDA_ALLOCATOR_SHARE)
    share = CPU_MALLOC_SHARE_COMPILED if numerics.compiled else CPU_MALLOC_SHARE_EAGER
    return round((live.activations + live.workspace) * share)
