"""What one of several devices holds, when they share a training step.

    ddp     everything on each; the buckets in which gradients travel hold them a second time (torch's
            `DistributedDataParallel`: `gradient_as_bucket_view`, which Trainer leaves off, would save that)
    zero2   gradients and optimizer state cut into equal parts (Rajbhandari et al. 2020, "ZeRO", section 5)
    fsdp    the weights too: the layer that computes and the next one are gathered whole, head and embedding stay
            gathered through the step (`torch.distributed.fsdp.fully_shard`, the root module), in the dtype that they
            are kept in; the copies that autocast makes of them stay as on one device, but those of a checkpointed
            layer, whose cache is off (docs/devices.md); zero3 likewise

Equal parts are an ideal: padding of parts and communication buffers of NCCL are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.planning.estimate.numerics import Numerics
from bench.planning.estimate.parameters import base_parameters, base_tensors
from bench.planning.estimate.static import base_bytes, static_bytes
from bench.planning.estimate.terms import Terms
from bench.spec.architecture import ArchitectureConfig
from bench.spec.config import MethodConfig
from bench.spec.plan import Strategy

_GATHERED_LAYERS = 2  # the one that computes, and the one that is fetched meanwhile


@dataclass(frozen=True)
class Parallel:
    """How many devices share a step, and how."""

    devices: int
    strategy: Strategy


ALONE = Parallel(1, "ddp")


def shared(
    alone: Terms, architecture: ArchitectureConfig, method: MethodConfig, numerics: Numerics, parallel: Parallel
) -> Terms:
    """What each device holds of what one would hold alone; activations are of its own micro-batch."""
    n = parallel.devices
    if n == 1:
        return alone
    gradients = static_bytes(architecture, method, "bfloat16" if numerics.autocast else "float32").gradients
    if parallel.strategy == "ddp":
        return replace(alone, gradients=alone.gradients + gradients)
    cut = replace(alone, gradients=-(-alone.gradients // n), optimizer=-(-alone.optimizer // n))
    if parallel.strategy == "zero2":
        return cut
    of_a_layer = gradients // architecture.num_hidden_layers if numerics.trains_all else 0
    return replace(
        cut,
        weights=-(-alone.weights // n),
        casts=_gathered(architecture, method, numerics) + _copies(alone, architecture, numerics),
        workspace=alone.workspace + of_a_layer,  # a layer's gradient before it is cut
    )


def _gathered(architecture: ArchitectureConfig, method: MethodConfig, numerics: Numerics) -> int:
    """Bytes of what is whole on every device, in the dtype it is kept in, or quantized as it is stored."""
    counts = base_parameters(architecture)
    of_layers = base_bytes(base_tensors(architecture) | {"embeddings": []}, method.quantization, numerics.weights)
    return numerics.weights * counts["embeddings"] + _GATHERED_LAYERS * of_layers // architecture.num_hidden_layers


def _copies(alone: Terms, architecture: ArchitectureConfig, numerics: Numerics) -> int:
    """Of autocast, in 16 bit: of all layers, or of one where a layer is computed again."""
    if not numerics.checkpointing:
        return alone.casts
    of_layers = base_parameters(architecture)["linear"] if numerics.trains_all else 0
    return min(alone.casts, numerics.compute * of_layers // architecture.num_hidden_layers)
