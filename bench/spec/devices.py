"""Several devices that share every training step: how, and what does not go together.

    ddp     everything on each device; gradients are averaged
    fsdp    weights, gradients and optimizer state cut into equal parts, a layer at a time gathered (FSDP2)
    zero2   gradients and optimizer state cut (DeepSpeed)
    zero3   the weights too (DeepSpeed)

`hardware.devices` and `hardware.strategy` choose; docs/devices.md explains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bench.spec.config import RunConfig

Strategy = Literal["none", "ddp", "fsdp", "zero2", "zero3"]
DEEPSPEED = ("zero2", "zero3")
CUTS_WEIGHTS = ("fsdp", "zero3")
ONE = {"devices": 1, "strategy": "none", "cpu_offload": False}  # of hardware, what older descriptions do not say
_CUT = ("fsdp", *DEEPSPEED)


def problems_with(config: RunConfig) -> Iterator[str]:
    """Mistakes in `hardware.devices`, `hardware.strategy` and `hardware.cpu_offload`, told from the settings alone."""
    hardware, train, method = config.hardware, config.train, config.method
    devices, strategy = hardware.devices, hardware.strategy
    if devices > 1 and strategy == "none":
        yield f"hardware.strategy: none with hardware.devices={devices}; choose ddp, fsdp, zero2 or zero3"
    if devices == 1 and strategy != "none":
        yield f"hardware.strategy: {strategy} needs hardware.devices of at least 2; given 1"
    if hardware.cpu_offload and strategy not in _CUT:
        yield f"hardware.cpu_offload: {strategy} keeps everything on the device; use it with {', '.join(_CUT)}"
    if devices > 1 and train.micro_batch == "auto":
        yield f"train.micro_batch: auto probes one device, and hardware.devices={devices}; give a number"
    elif devices > 1 and train.batch_size % (devices * train.fitted_micro_batch):
        yield (
            f"hardware.devices: {devices} devices with train.micro_batch={train.micro_batch} do not divide "
            f"train.batch_size={train.batch_size}; choose train.micro_batch so that their product does"
        )
    if devices > 1 and train.checkpoint_every_steps is not None:
        yield f"train.checkpoint_every_steps: one device alone can resume, and hardware.devices={devices}; use null"
    if devices > 1 and method.optimizer != "adamw" and strategy != "ddp":
        yield f"method.optimizer: {method.optimizer} cannot work on cut state ({strategy}); use adamw, or ddp"
    adapter = method.adapter
    if adapter is not None and adapter.loraplus_lr_ratio is not None and strategy not in ("none", "ddp"):
        yield f"method.adapter.loraplus_lr_ratio: its optimizer is made before {strategy} cuts; use ddp"
    if strategy in _CUT and method.quantization is not None and method.quantization.scheme == "int8":
        yield f"method.quantization.scheme: int8 weights cannot be cut ({strategy}); use nf4, or ddp"
