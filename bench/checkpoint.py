"""What a model's folder says before anything loads it: config.json, the headers of its weights, an export's manifest.

Files alone are read, without torch, so that every mistake shows before a child starts. What only loading shows
(weights by name, their values, the tokenizer) is checked by the worker, in `models.check`.

    >>> problems(Path("path/to/model"), max_context=4096)
    ['model.max_context: 4096 is beyond the 2048 positions of config.json; lower it']
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open

from bench.config import ArchitectureConfig, ModelType, RunConfig
from bench.identity import MODEL_WEIGHTS, weight_files
from bench.record import Environment, RunId

_STRICT = ConfigDict(extra="forbid", ser_json_inf_nan="null")
UNKNOWN_POSITIONS = 2048  # of a model that states no limit (ALiBi, states)
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_FLOATS = ("F64", "F32", "F16", "BF16")
_QUANTIZED = ("quantization_config", "compression_config")  # in config.json
_QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # GPTQ, AWQ, ModelOpt
_CONVERT = (
    "AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(OTHER) of transformers writes "
    "one, from a source that you trust"
)


def problems_of(config: RunConfig) -> list[str]:
    """Everything wrong with the folder of a run with `model=folder`."""
    model = config.model
    return problems(Path(model.location), model.max_context) if model.source == "folder" else []


def problems(folder: Path, max_context: int) -> list[str]:
    """Everything wrong with a model's folder that its files tell, one line each."""
    if not folder.is_dir():
        return [f"model.location: {str(folder)!r} is not a folder; give one with config.json, tokenizer and weights"]
    try:
        content = read_config(folder)
    except ValueError as error:
        return [f"model.location: {error}"]
    return config_problems(content, max_context) + _file_problems(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        ValueError: it is missing or is no JSON object; the message says which, and what the folder seems to be.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no config.json in {str(folder)!r}; {_instead(folder)}")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({error}); copy it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ValueError(f"{str(path)!r} names no model_type; give a folder that transformers' save_pretrained wrote")
    return content


def _instead(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return "it holds an adapter: merge it into its base, and give the folder of the result"
    if any(folder.glob("*.gguf")):
        return "GGUF files are not read: give the original 16-bit folder"
    return "give the folder that transformers' save_pretrained wrote"


def positions(content: Mapping[str, Any]) -> int | None:
    """The longest text that a model takes, in tokens, by its config.json; None where it states no limit.

    >>> positions({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    16384
    """
    text = text_part(content)
    stated = next((text[name] for name in _POSITIONS if isinstance(text.get(name), int)), None)
    rope = text.get("rope_scaling") or text.get("rope_parameters")
    if stated is None or not isinstance(rope, Mapping) or not isinstance(rope.get("factor"), (int, float)):
        return stated
    return max(stated, int((rope.get("original_max_position_embeddings") or stated) * rope["factor"]))


def window(content: Mapping[str, Any]) -> int | None:
    """How many tokens back a layer with local attention sees; None: every layer sees all."""
    text = text_part(content)
    size = text.get("sliding_window")
    return size if isinstance(size, int) and text.get("use_sliding_window", True) else None


def text_part(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the language model, which stand in a part of their own where a model reads images too."""
    return next(
        (content[name] for name in ("text_config", "llm_config") if isinstance(content.get(name), dict)), content
    )


def config_problems(content: Mapping[str, Any], max_context: int) -> list[str]:
    """What a config.json says that cannot be trained, or that contradicts the run."""
    found, limit = [], positions(content)
    heads = [str(name) for name in content.get("architectures") or []]
    if content.get("is_encoder_decoder"):
        found.append(f"model.location: {content['model_type']} has an encoder and a decoder; choose a decoder (causal)")
    elif heads and not content.get("auto_map") and all(map(_is_other_head, heads)):
        found.append(f"model.location: {', '.join(heads)} is not a causal language model; choose a ...ForCausalLM")
    for name in _QUANTIZED:
        if content.get(name):
            found.append(_already_quantized(f"config.json has {name}: {_method_of(content[name])}"))
    if limit is not None and max_context > limit:
        found.append(f"model.max_context: {max_context} is beyond the {limit} positions of config.json; lower it")
    return found


def _is_other_head(name: str) -> bool:
    return re.search(r"For(?!CausalLM|ConditionalGeneration)[A-Z]\w*$", name) is not None


def _method_of(quantization: Any) -> str:
    named = [quantization.get(key) for key in ("quant_method", "load_in_4bit", "load_in_8bit")]
    return str(named[0] or ("4 bit" if named[1] else "8 bit" if named[2] else "unnamed"))


def _already_quantized(how: str) -> str:
    return (
        f"model.location: the weights are already quantized ({how}); full and LoRA would not train what they say. "
        "Give the original 16-bit checkpoint: method=qlora quantizes it"
    )


def _file_problems(folder: Path) -> list[str]:
    found = [_already_quantized(f"{name} is there") for name in _QUANTIZED_FILES if (folder / name).exists()]
    files = weight_files(folder)
    if not any((folder / name).exists() for name in MODEL_WEIGHTS):
        there = [path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.gguf")]]
        beside = f" beside {', '.join(there[:3])}" if there else ""
        found.append(f"model.location: no model.safetensors in {str(folder)!r}{beside}; {_CONVERT}")
    dtypes: dict[str, str] = {}
    for path in files:
        try:
            dtypes |= read_header(path)
        except (OSError, ValueError) as error:
            found.append(f"model.location: {path.name} {error}")
    packed = [name for name, dtype in dtypes.items() if name.endswith("weight") and dtype not in _FLOATS]
    if packed:
        found.append(_already_quantized(f"{packed[0]} holds {dtypes[packed[0]]}"))
    return found


def read_header(path: Path) -> dict[str, str]:
    """Tensor name -> its dtype, by safetensors' names ("BF16"), from a file's header alone. Errors: `tensors`."""
    return {name: str(tensor["dtype"]) for name, tensor in tensors(path).items()}


def tensors(path: Path) -> dict[str, Any]:
    """Tensor name -> its "dtype" and "shape", from a safetensors file's header alone.

    Raises:
        ValueError: not such a file, or not all of it; the message says what it is and what to do.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError("is named by the index and is not there; copy it, too")
    with path.open("rb") as file:
        if file.read(8) == b"version ":
            raise ValueError("is a Git LFS pointer, not the weights; run `git lfs pull` in the folder it came from")
    try:
        with safe_open(path, "numpy") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: {"dtype": part.get_dtype(), "shape": part.get_shape()} for name, part in parts.items()}
    except SafetensorError as error:
        raise ValueError(f"is cut short, damaged or no safetensors file ({error}); copy it again") from None


def read_architecture(content: Mapping[str, Any]) -> ArchitectureConfig:
    """The architecture that a model's `config.json` describes.

    Raises:
        ValueError: another kind of model, or numbers that are not there; the message says which.
    """
    kind, allowed = content.get("model_type"), get_args(ModelType)
    if kind not in allowed:
        raise ValueError(f"model_type {kind!r} is not one that the planner knows; allowed: {', '.join(allowed)}")
    heads, hidden = content.get("num_attention_heads"), content.get("hidden_size")
    filled: dict[str, Any] = {"tie_word_embeddings": False, "num_key_value_heads": heads}  # transformers' defaults
    if heads and hidden:
        filled["head_dim"] = hidden // heads
    known = fields(ArchitectureConfig)
    filled |= {f.name: content[f.name] for f in known if content.get(f.name) is not None}
    missing = [f.name for f in known if f.name not in filled and f.default is MISSING]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing")
    return ArchitectureConfig(**filled)


# --- An exported folder ---

MANIFEST = "bench-manifest.json"


CARD = "README.md"  # may be edited: it is not part of what is verified


MANIFEST_VERSION = 1
CHECKED = "bench-check.json"  # a `ServeResult`: what was exported, judged against the run that it came from
ASKED = "asked.json"  # an `Asked`, in the folder of the children of an export
CONVERTER = "convert_hf_to_gguf.py"  # in a checkout of llama.cpp


@dataclass(frozen=True, config=_STRICT)
class Asked:
    """What an export asks of its children."""

    format: Literal["safetensors", "gguf"] = "safetensors"
    gguf_type: Literal["f16", "q8_0"] = "f16"
    form: str | None = None  # of serving, from which GGUF is made; or the name of what is judged; None: the child's own
    llama_cpp: str | None = None  # a checkout of llama.cpp, whose converter is called
    exported: str | None = None  # the folder that is judged


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
    environment: Environment


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """An exported adapter or model."""

    run_id: RunId
    kind: Literal["adapter", "model"]
    config: RunConfig  # the machine's paths are left out
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
    form: str | None = None  # of serving (merged, merged_nf4, ...) or GGUF (merged_gguf_f16); None: as it was trained
    tensors: dict[str, int] | None = None  # of GGUF: how many of which type; None: unknown, or none
    judged: bool = True  # whether the scores are of these files; else of the run, before it was written so
    schema_version: int = MANIFEST_VERSION
