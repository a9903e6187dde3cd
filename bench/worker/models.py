"""From a model's name to its weights and tokenizer.

The embedded model is dequantized from GGUF once and kept as safetensors in the cache; after that every run maps
the same file into memory. Hub models load by name; safetensors only, no remote code unless the config asks.

    >>> source = locate(config.model, cache)
    >>> tokenizer = load_tokenizer(config.model, source)
    >>> model = load_weights(config.model, source, dtype=torch.bfloat16, device="cpu")
"""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bench.config import ConfigurationError, ModelConfig, RunConfig
from bench.identity import make_once
from bench.worker.chat import with_options

_MACHINE_TROUBLE = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO)


def locate(model: ModelConfig, cache: Path) -> str:
    """The name or folder that `from_pretrained` takes; makes the cached copy where one is needed.

    Raises:
        ConfigurationError: the package or folder is missing.
    """
    if model.source == "gguf_package":
        found = importlib.util.find_spec(model.location)  # without importing it, which would load llama.cpp
        if found is None or found.origin is None:
            problem = f"model.location: the package {model.location!r} is not installed"
            raise ConfigurationError([f"{problem}; run `make setup`, or choose a hub model"])
        gguf = next(Path(found.origin).parent.rglob("*.gguf"))
        folder = cache / "models" / f"{model.name}-{version(model.location.replace('_', '-'))}"
        return str(make_once(folder, lambda target: _dequantize(gguf, target), cache))
    if model.source == "random":
        return str(make_once(cache / "models" / model.name, _make_random, cache))
    if model.source == "folder" and not (Path(model.location) / "config.json").exists():
        raise ConfigurationError([f"model.location: no config.json in the folder {model.location!r}"])
    return model.location


def fetch(model: ModelConfig, cache: Path) -> str:
    """`locate`, after downloading a hub model's weights, tokenizer and configuration (safetensors only)."""
    if model.source != "hub":
        return locate(model, cache)
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    _or_explain(model, lambda: snapshot_download(model.location, revision=model.revision, allow_patterns=patterns))
    return model.location


def local_folder(model: ModelConfig, source: str) -> Path:
    """The folder of a model that has been fetched.

    Args:
        source: what `locate` gave: a folder, or a name on the hub.

    Raises:
        OSError: the hub's files are not in the local cache.
    """
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, revision=model.revision, local_files_only=True))


def load_tokenizer(model: ModelConfig, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token and the config's chat template if it sets one, its options and date set.

    Raises:
        ConfigurationError: an option that the chat template does not read.
    """
    tokenizer = _or_explain(model, lambda: AutoTokenizer.from_pretrained(source, **_hub_options(model)))
    template = tokenizer.chat_template if model.chat_template is None else model.chat_template
    tokenizer.chat_template = with_options(template, model.template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(model: ModelConfig, source: str, *, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """The model in evaluation mode; `options` go to `from_pretrained` (device_map, quantization_config, ...)."""
    options = {"dtype": dtype, "use_safetensors": True, **_hub_options(model), **options}
    loaded: PreTrainedModel = _or_explain(model, lambda: AutoModelForCausalLM.from_pretrained(source, **options))
    generation = loaded.generation_config  # transformers fills unset fields from it: greedy decoding would sample
    assert generation is not None
    generation.do_sample = False
    for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty"):
        if hasattr(generation, name):
            setattr(generation, name, None)
    return loaded.eval()


def _hub_options(model: ModelConfig) -> dict[str, Any]:
    return {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}


def _or_explain(model: ModelConfig, load: Callable[[], Any]) -> Any:
    """Call `load`; a model that cannot be found or read becomes a ConfigurationError."""
    try:
        return load()
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _MACHINE_TROUBLE or (number is not None and model.source != "hub"):
            raise  # a full disk or an unreadable file is not a wrong name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(
            [
                f"model.location: cannot load {model.location or model.name!r} ({reason}); check the "
                "name and the access rights, or fetch it where the hub can be reached and use model=folder"
            ]
        ) from error


def _dequantize(gguf: Path, target: Path) -> None:
    """Write a GGUF model as bf16 safetensors, the form every method starts from."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
    )
    model.bfloat16().save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


_RANDOM_CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _make_random(target: Path) -> None:
    """Two Llama layers of random weights and a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = _RANDOM_CHAT
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(target)
    tokenizer.save_pretrained(target)


def stored(
    config: RunConfig, source: str, device: str, dtype: torch.dtype, storage: torch.dtype, quantize: Callable[[], Any]
) -> tuple[Path, str | None] | None:
    """The quantized base, kept in the cache: (its folder, the hub commit that it was made from).

    None for a model whose weights may change under the same name.

    Args:
        source: what `locate` gave.
        device, dtype: where and to what the base is quantized; processors round differently.
        storage: dtype of the elements that 4-bit weights are packed into.
        quantize: loads the base with its quantization; called when nothing is stored yet.
    """
    quantization = config.method.quantization
    name, commit = origin(config, source)
    if quantization is None or name is None:
        return None
    scheme = quantization.scheme + ("-double" if quantization.double_quantization else "")
    stored_name = f"{name}-{scheme}-{device}-{str(dtype).removeprefix('torch.')}"
    if storage is not torch.uint8:
        stored_name += f"-in-{str(storage).removeprefix('torch.')}"
    cache = Path(config.paths.cache)
    folder = cache / "quantized" / stored_name
    return make_once(folder, lambda target: quantize().save_pretrained(target), cache), commit


def origin(config: RunConfig, source: str) -> tuple[str | None, str | None]:
    """(a name for exactly these weights, their hub commit); no name for a folder, whose content may change."""
    model = config.model
    if model.source in ("gguf_package", "random"):
        return Path(source).name, None
    if model.source == "hub":
        commit = getattr(AutoConfig.from_pretrained(source, **_hub_options(model)), "_commit_hash", None)
        return (f"{model.name}-{commit[:12]}" if commit else None), commit
    return None, None
