"""How several devices share a step, in the terms of `transformers` and DeepSpeed; and what was cut, made whole again.

The numerics stay those of one device: weights, gradients and what is exchanged keep their dtypes, and autocast rounds
in the forward pass. FSDP's and DeepSpeed's usual bf16 modes are not used, because they also round norms, embeddings,
adapters and gradients, and would make a comparison across strategies one of numerics (docs/devices.md).

    >>> arguments(config, torch.bfloat16)      # further fields of `transformers.TrainingArguments`
    {'fsdp': True, 'fsdp_config': {'version': 2, 'reshard_after_forward': True, 'cpu_offload': False, ...}}
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from bench.config import DEEPSPEED, RunConfig


def arguments(config: RunConfig, compute_dtype: torch.dtype) -> dict[str, Any]:
    """What `hardware.strategy` adds to the training arguments."""
    hardware = config.hardware
    if hardware.strategy == "ddp":
        return {"ddp_find_unused_parameters": False}  # every parameter has a part in every loss
    if hardware.strategy == "fsdp":
        # Gradients are cut after every micro-batch: whole ones, kept until the last, would be those of the whole model.
        each = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        return {"fsdp": True, "fsdp_config": fsdp(cpu_offload=hardware.cpu_offload), "accelerator_config": each}
    if hardware.strategy in DEEPSPEED:
        stage = 2 if hardware.strategy == "zero2" else 3
        return {"deepspeed": deepspeed(stage, compute_dtype, cpu_offload=hardware.cpu_offload)}
    return {}


def fsdp(*, cpu_offload: bool) -> dict[str, Any]:
    """`TrainingArguments.fsdp_config`: FSDP2, each decoder layer a unit, given back after its forward pass."""
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "cpu_offload": cpu_offload,
        "state_dict_type": "FULL_STATE_DICT",
    }


def deepspeed(stage: int, compute_dtype: torch.dtype, *, cpu_offload: bool) -> dict[str, Any]:
    """A DeepSpeed configuration of ZeRO stage 2 or 3; "auto" is filled in by `transformers` from its own arguments."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # whole weights for `whole_state`
        if cpu_offload:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    autocasts = compute_dtype is torch.bfloat16
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": autocasts, "dtype": "bfloat16"},
        "communication_data_type": "fp32",
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, as everywhere
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def cut_on_cpu_too(trainer: Any) -> None:
    """Let FSDP work on CPUs: accelerate knows it for other devices only, though torch's FSDP2 needs just gloo there."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    if trainer.args.fsdp_plugin_args is not None and state.distributed_type is DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        trainer.is_fsdp_enabled = True


def autocasts_itself(config: RunConfig) -> bool:
    """Whether the loss is computed under our autocast or DeepSpeed's: accelerate's bf16 would cast the weights too."""
    return config.hardware.strategy == "fsdp" or config.hardware.strategy in DEEPSPEED


def whole_state(trainer: Any, config: RunConfig) -> dict[str, torch.Tensor] | None:
    """What was trained, put together on the CPU of the first process; every process must call.

    None where every process has it whole. Tied weights appear once.
    """
    if config.hardware.strategy == "zero3":
        state: dict[str, torch.Tensor] | None = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return state
    if config.hardware.strategy != "fsdp":
        return None
    for module in trainer.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # embedding and head stay gathered after an evaluation
    whole = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            gathered = parameter.full_tensor()
            if trainer.accelerator.is_main_process:
                whole[name] = gathered.cpu()
    return whole
