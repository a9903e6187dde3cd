"""From a form's description to a loaded model: build it once on disk, then load it as a server would.

Merged and requantized forms are written below the run's weights (`artifacts/<run_id>/forms/<form>`), with their
tokenizer, ready to be served by anything that reads a model folder. Merging adds the adapter's product, in fp32, to
the 16-bit weight and rounds once.

    >>> at = Origin(config, source, weights, device, tokenizer)
    >>> build(form, at)
    >>> model = load(form, at)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from bench.config import QuantizationConfig, RunConfig
from bench.worker import methods
from bench.worker.device import Device
from bench.worker.instruments.memory import quantization_constants, total_bytes
from bench.worker.models import make_once
from bench.worker.serving.form import Form


@dataclass(frozen=True)
class Origin:
    """Where a run's forms come from."""

    config: RunConfig
    source: str  # of the base, from `models.locate`
    weights: Path  # what training wrote
    device: Device
    tokenizer: Any

    def folder(self, form: Form) -> Path:
        """Of a form that is built."""
        return self.weights / "forms" / form.name


def build(form: Form, at: Origin) -> Path:
    """The folder that a form is loaded from; merged and requantized ones are written to it, unless they are whole."""
    if not form.is_built:
        return at.weights
    return make_once(at.folder(form), lambda target: _write(form, at, target))


def _write(form: Form, at: Origin, target: Path) -> None:
    if form.before is not None and form.scheme is not None:
        model = _from_folder(build(form.before, at), at, form.scheme)
    else:
        from peft import PeftModel

        # PEFT keeps the adapter in fp32 here, so that each weight is added to in fp32 and rounded once.
        model = PeftModel.from_pretrained(_start(form, at), at.weights).merge_and_unload()
        model = model.to(torch.bfloat16)  # the form that is shipped, wherever it was computed
    model.save_pretrained(target)
    at.tokenizer.save_pretrained(target)


def load(form: Form, at: Origin, *, as_evaluated: bool = False) -> Any:
    """The model in evaluation mode on the device.

    Args:
        as_evaluated: multiply 4-bit weights as 16-bit ones on a CPU, as the evaluation does: the same numbers, faster.
    """
    model = _from_folder(at.folder(form), at) if form.is_built else _start(form, at)
    if as_evaluated:
        model = _in_evaluations_numerics(model, at.device)
    if form.adapter == "beside":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, at.weights, autocast_adapter_dtype=False)
    return model.eval()


def load_exact(form: Form, at: Origin) -> Any:
    """The form as exact arithmetic would have it, nearly: the weights that it has, fp32 in all that is computed."""
    model = _from_folder(at.folder(form), at) if form.is_built else _start(form, at)
    if getattr(model, "is_loaded_in_4bit", False):
        model = model.dequantize(at.device.compute_dtype)
    model = model.float()
    if form.adapter == "beside":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, at.weights)  # in fp32, as it was saved
    return model.eval()


def load_folder(config: RunConfig, folder: Path, device: Device) -> Any:
    """A built form from any folder, in the numerics in which it was scored."""
    model = methods.load_as_stored(config, str(folder), device.type, device.compute_dtype)
    return _in_evaluations_numerics(model, device).eval()


def _in_evaluations_numerics(model: Any, device: Device) -> Any:
    """4-bit weights dequantized on a CPU; others as they are."""
    in_4_bit = device.type == "cpu" and getattr(model, "is_loaded_in_4bit", False)
    return model.dequantize(device.compute_dtype) if in_4_bit else model


def _start(form: Form, at: Origin) -> Any:
    if form.start == "trained":
        return _from_folder(at.weights, at)
    if form.start == "original":
        return _from_folder(at.source, at)
    base = methods.load_base(at.config, at.source, at.device.type, at.device.compute_dtype)
    if form.start == "dequantized":
        base = base.dequantize(at.device.compute_dtype)
        base._weight_conversions = None  # how the 4-bit file was read; a 16-bit one is written otherwise
    return base


def _from_folder(folder: Path | str, at: Origin, quantization: QuantizationConfig | None = None) -> Any:
    return methods.load_as_stored(at.config, str(folder), at.device.type, at.device.compute_dtype, quantization)


def disk_bytes(form: Form, model: Any, at: Origin) -> int | None:
    """What must be on disk to load a form; None where the base's files cannot be found.

    Args:
        model: the loaded form, which knows the folder or the hub name that its base was read from.
    """
    base = model.get_base_model() if form.adapter == "beside" else model
    folder = _base_folder(str(base.name_or_path), at)
    if folder is None:
        return None
    return size_bytes(folder) + (size_bytes(at.weights) if form.adapter == "beside" else 0)


def _base_folder(name: str, at: Origin) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=at.config.model.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors that make a model or an adapter; others beside them (another layout of it) are left out."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    named = [folder / name for name in ("model.safetensors", "adapter_model.safetensors")]
    return [path for path in named if path.exists()] or sorted(folder.glob("*.safetensors"))


def size_bytes(folder: Path) -> int:
    """Of the weights in a folder."""
    return sum(path.stat().st_size for path in weight_files(folder))


def weights_bytes(model: Any) -> int:
    """Of a loaded model's tensors, quantization constants included; tied weights count once."""
    parameters = list(model.parameters())
    constants = [tensor for parameter in parameters for tensor in quantization_constants(parameter)]
    return total_bytes([*parameters, *constants, *model.buffers()])
