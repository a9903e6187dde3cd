"""From a model's name to its weights and tokenizer.

The embedded model is dequantized from GGUF once and kept as safetensors in the cache; after that every run maps
the same file into memory. Hub models load by name; safetensors only, no remote code unless the config asks.

A model of the user's is checked once, before anything trains (`check`). Loading is strict: each weight that the model
has is in the files, by name and shape, and each in the files is in the model.

    >>> source = locate(config.model, cache)
    >>> tokenizer = load_tokenizer(config.model, source)
    >>> model = load_weights(config.model, source, dtype=torch.bfloat16, device="cpu")
"""

from __future__ import annotations

import errno
import importlib.util
import json
import re
from collections.abc import Callable, Collection
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from bench import checkpoint
from bench.config import ModelConfig, RunConfig
from bench.identity import digest, make_once, write_atomic
from bench.mistakes import ConfigurationError, refuse
from bench.worker.chat import with_options
from bench.worker.instruments.memory import release

_SHOWN = 5  # names in a message
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]  # of a repository; * crosses folders
_UNWANTED = ["consolidated*", "*/*.safetensors", "*/*.json"]  # the same weights again, in another layout
HOW_TO_LOG_IN = "accept the licence on its page on the hub, then .venv/bin/hf auth login (or HF_TOKEN=...)"
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
    return model.location


def fetch(model: ModelConfig, cache: Path) -> str:
    """`locate`, after downloading a hub model's weights, tokenizer and configuration (safetensors only).

    Raises:
        ConfigurationError: the model cannot be had, or its files show that it cannot be trained (`checkpoint`).
    """
    source = locate(model, cache)
    if model.source == "hub":
        path = _or_explain(model, lambda: hf_hub_download(source, "config.json", revision=model.revision))
        content = json.loads(Path(path).read_bytes())
        refuse(checkpoint.config_problems(content, model.max_context))  # before the weights are downloaded
        files: dict[str, Any] = {"allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
        _or_explain(model, lambda: snapshot_download(source, revision=model.revision, **files))
    if model.source in ("hub", "folder"):
        refuse(checkpoint.problems(local_folder(model, source), model.max_context))
    return source


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

    A template that can think is asked for the answer alone, unless `model.template` says otherwise.

    Raises:
        ConfigurationError: no token ends a text; an option that the chat template does not read.
    """
    tokenizer = _or_explain(model, lambda: AutoTokenizer.from_pretrained(source, **_hub_options(model)))
    for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
        if getattr(tokenizer, name) == "":  # some folders write "" for none; every text begins with it
            setattr(tokenizer, name, None)
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"model.location: the tokenizer of {model.name} names no token that ends a text; set eos_token in its "
            'tokenizer_config.json, for example "eos_token": "<|im_end|>"'
        )
    template = tokenizer.chat_template if model.chat_template is None else model.chat_template
    thinks = isinstance(template, str) and re.search(r"\benable_thinking\b", template)
    tokenizer.chat_template = with_options(template, ({"enable_thinking": False} if thinks else {}) | model.template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(model: ModelConfig, source: str, *, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """The model in evaluation mode; `options` go to `from_pretrained` (device_map, quantization_config, ...).

    `attn_implementation` is a wish: a model that does not support it takes what it supports, sdpa before eager
    (`check` refuses what was asked for by name). Of its generation_config.json only the end tokens are kept:
    transformers fills unset fields from the rest, so greedy decoding would sample, ban tokens or not be saved.

    Raises:
        ConfigurationError: it cannot be read; a weight is missing, left over or of another shape.
    """
    options = {"dtype": dtype, "use_safetensors": True, **_hub_options(model), **options}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told below, by name
    options["generation_config"] = _end_tokens(model, source)
    loaded, found = _or_explain(model, lambda: _load(source, **options))
    refuse(_not_strict(type(loaded).__name__, found))
    loaded.__dict__.pop("generate", None)  # a folder's own, which remote code may bring
    whole: PreTrainedModel = loaded.eval()
    return whole


def _load(source: str, *, attn_implementation: str | None = None, **options: Any) -> Any:
    if attn_implementation not in (None, "sdpa"):  # None: sdpa where the model supports it, else eager
        try:
            return AutoModelForCausalLM.from_pretrained(source, attn_implementation=attn_implementation, **options)
        except (ValueError, ImportError):
            if attn_implementation == "eager":
                raise
    return AutoModelForCausalLM.from_pretrained(source, **options)


def _end_tokens(model: ModelConfig, source: str) -> GenerationConfig:
    """The tokens at which the model's own settings end an answer, and nothing else of them."""
    options = {"revision": model.revision or "main", "_raise_exceptions_for_missing_entries": False}

    def read(name: str) -> dict[str, Any]:
        path = cached_file(source, name, **options)
        return dict(json.loads(Path(path).read_bytes())) if path else {}

    for name in ("generation_config.json", "config.json"):
        content = _or_explain(model, partial(read, name))
        if content.get("eos_token_id") is not None:
            return GenerationConfig(eos_token_id=content["eos_token_id"], pad_token_id=content.get("pad_token_id"))
    return GenerationConfig()


def take_rows_together(model: Any) -> None:
    """Let a frozen head multiply the rows of a batch at once.

    PyTorch folds (rows, 1, width) @ head into one product only where the rows lie side by side or the head is trained;
    else it copies the head for each row: 2.6 GiB for 48 rows of the embedded model, in the first step of each answer.
    """
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(lambda _, given: tuple(tensor.contiguous() for tensor in given))


def stop_at(model: Any, tokens: Collection[int]) -> None:
    """Let answers end at these tokens, besides those that the model's own settings name; saved with the model."""
    generation = model.generation_config
    named = generation.eos_token_id
    generation.eos_token_id = sorted({*([named] if isinstance(named, int) else named or []), *tokens})


def _not_strict(kind: str, found: dict[str, Any]) -> list[str]:
    """One line for each way in which the files' weights are not the model's, from transformers' loading info."""
    other_shapes = [
        f"{name} is {tuple(stored)} and not {tuple(expected)}" for name, stored, expected in found["mismatched_keys"]
    ]
    ways = {
        "weights are missing and would be drawn at random": found["missing_keys"],
        f"weights are not part of {kind} and would be left out": found["unexpected_keys"],
        "weights have another shape than config.json says": other_shapes,
    }
    return [
        f"model.location: {what}: {_some(names)}; give the whole checkpoint, and the config.json that it was saved "
        "with (architectures, tie_word_embeddings, sizes)"
        for what, names in ways.items()
        if names
    ]


def _some(names: Collection[str]) -> str:
    shown, more = sorted(names)[:_SHOWN], len(names) - _SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def not_finite(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity; packed 4-bit weights, floats under FSDP, are no numbers."""
    numbers = ((name, p) for name, p in model.named_parameters() if not hasattr(p, "bnb_quantized"))
    floats = [(name, p) for name, p in numbers if p.is_floating_point()]
    return [name for name, parameter in floats if not torch.isfinite(parameter).all()]


# ----------------------------------------------------------------------------------------------------------- checks
def check(config: RunConfig, source: str, tokenizer: Any) -> list[str]:
    """Check what only loading a fetched model of the user's shows; once for the same files.

    Returns:
        what a person should know of it, one line each.

    Raises:
        ConfigurationError: all that is wrong.
    """
    model = config.model
    if model.source not in ("folder", "hub"):
        return []
    folder, asked = local_folder(model, source), config.hardware.attention
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    settings = [model.chat_template, model.trust_remote_code, asked, config.train.max_length]
    stamp = digest([str(folder), files, settings, Path(__file__).read_text()])
    seen = Path(config.paths.cache) / "checked" / f"{stamp}.json"
    if not seen.exists():
        place = _place_for(sum(size for _, size, _ in files))
        loaded = load_weights(model, source, dtype=torch.bfloat16, device_map={"": place})
        refuse(_vocabulary_problems(tokenizer, loaded) + _loaded_problems(asked, loaded))
        write_atomic(seen, json.dumps(_notes(config, folder, loaded)))
    notes: list[str] = json.loads(seen.read_bytes())
    return notes


def _place_for(size_bytes: int) -> str:
    """The GPU if a model fits into what is free there."""
    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 1.2 * size_bytes else "cpu"


def _embedding_rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _vocabulary_problems(tokenizer: Any, model: PreTrainedModel) -> list[str]:
    """Tokens that may come up and have no row in the embedding.

    Added tokens that no prompt has (of images, say) may lie beyond it: texts that spell them out are left out.
    """
    rows = _embedding_rows(model)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    try:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        used |= set(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception:  # a template that fails is explained where the examples are formatted
        pass
    beyond = [t for t, id in tokenizer.get_vocab().items() if id >= rows and (id in used or id not in special)]
    if not beyond:
        return []
    return [
        f"model.location: the embedding has {rows} rows, and the tokenizer has tokens beyond them: {_some(beyond)}; "
        "resize the model (resize_token_embeddings) and save it, or give the tokenizer that belongs to it"
    ]


def _loaded_problems(attention: str, model: PreTrainedModel) -> list[str]:
    kind, broken = type(model).__name__, not_finite(model)
    if broken:
        return [f"model.location: weights are not finite (NaN or infinity): {_some(broken)}; copy or convert it again"]
    supported = {
        "sdpa": model._supports_sdpa,
        "products": model._supports_sdpa and model._supports_attention_backend,
        "flash_attention_2": model._supports_flash_attn,
    }
    problems = []
    if not supported.get(attention, True):
        problems.append(f"hardware.attention: {kind} does not support {attention}; use auto")
    try:
        earlier, changed = _logits_before_the_last(model)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return [*problems, f"model.location: {kind} fails on a text of eight tokens: {type(error).__name__}: {error}"]
    if not torch.isfinite(earlier).all():
        problems.append(f"model.location: {kind} gives logits that are not finite, though its weights are")
    elif (earlier - changed).abs().max() > 1e-3 * earlier.abs().max():
        problems.append(
            f"model.location: {kind} sees the future: its predictions change with a later token, as an encoder's do; "
            "choose a causal model (or set is_decoder in its config.json, if it was trained as one)"
        )
    return problems


@torch.no_grad()
def _logits_before_the_last(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two texts at all but their last token, in which alone they differ; each (7, vocabulary), in fp32."""
    first = torch.arange(10, 18, device=model.device) % _embedding_rows(model)
    second = first.clone()
    second[-1] = first[0]
    with torch.autocast(model.device.type, torch.bfloat16):
        logits = [model(input_ids=text.unsqueeze(0), use_cache=False).logits[0, :-1] for text in (first, second)]
    return logits[0].float(), logits[1].float()


def _notes(config: RunConfig, folder: Path, model: PreTrainedModel) -> list[str]:
    notes, name = [], config.model.name
    if config.hardware.attention == "auto" and not model._supports_sdpa:
        notes.append(f"{name}: attention is eager; {type(model).__name__} supports no sdpa")
    window = checkpoint.window(checkpoint.read_config(folder))
    if window is not None and window < config.train.max_length:
        notes.append(f"{name}: its local attention sees {window} tokens back; train.max_length is beyond that")
    return notes


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
        if _is_gated(error):
            raise ConfigurationError(
                [f"model.location: {model.location} is gated, and this login may not read it; {HOW_TO_LOG_IN}"]
            ) from error
        problem = (
            f"model.location: cannot load {model.location or model.name!r} ({reason}); check the "
            "name and the access rights, or fetch it where the hub can be reached and use model=folder"
        )
        if "trust_remote_code" in str(error):
            problem = (
                f"model.location: {model.location!r} needs its own code, which transformers does not have; read "
                "it, and set model.trust_remote_code=true if you trust it"
            )
        raise ConfigurationError([problem]) from error


def _is_gated(error: BaseException | None) -> bool:
    """Whether the hub asks for a licence or a login; transformers hides its answer behind an error of its own."""
    return error is not None and (
        isinstance(error, GatedRepoError) or _is_gated(error.__cause__) or _is_gated(error.__context__)
    )


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

    def make(target: Path) -> None:
        quantize().save_pretrained(target)
        release()  # else the device holds it a second time when it is loaded again

    return make_once(folder, make, cache), commit


def origin(config: RunConfig, source: str) -> tuple[str | None, str | None]:
    """(a name for exactly these weights, their hub commit); no name for a folder, whose content may change."""
    model = config.model
    if model.source in ("gguf_package", "random"):
        return Path(source).name, None
    if model.source == "hub":
        commit = getattr(AutoConfig.from_pretrained(source, **_hub_options(model)), "_commit_hash", None)
        return (f"{model.name}-{commit[:12]}" if commit else None), commit
    return None, None
