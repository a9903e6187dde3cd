"""A run's result as one GGUF file, which llama.cpp and what is built on it read: weights, tokenizer, template, ends.

Written here are the architectures of `FAMILY`; for others llama.cpp's own converter is called. Matrices are F16 or
Q8_0, norms and biases F32. llama.cpp rotates neighbouring elements of a head where transformers rotates its halves, so
the rows of Llama's q_proj and k_proj change their order. Tied embeddings are written once. The tokenizer is named by
what it does (`_pre`), so that the file splits a text as the run did.

    >>> write(Path("artifacts/.../forms/merged"), tokenizer, Path("model.gguf"), "q8_0", [2], "merged_gguf_q8_0")
    {'F32': 61, 'Q8_0': 211}
    >>> model = read(Path("model.gguf"), torch.bfloat16, "cpu")
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GgufConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from bench.checkpoint import ASKED, CONVERTER, Asked, read_config, window
from bench.identity import WEIGHTS, data_folder, weight_files
from bench.mistakes import ConfigurationError
from bench.record import ServeResult, from_json
from bench.worker import data, device, methods, models, serve
from bench.worker.main import Context

FAMILY = {"LlamaForCausalLM": "LLAMA", "MistralForCausalLM": "LLAMA", "Qwen2ForCausalLM": "QWEN2",
          "Qwen3ForCausalLM": "QWEN3"}  # architecture in config.json -> llama.cpp's  # fmt: skip
_ENDS = ("eos", "eot", "eom")  # keys of the format for tokens that end an answer
_ROTATIONS = ("default", "linear", "llama3")  # which a factor for each frequency describes
_PRE: dict[tuple[str, str | None, bool], str] = {  # (steps, what splits, whether known words are taken whole) -> name
    ("ByteLevel", None, False): "gpt-2",
    ("Digits ByteLevel", None, False): "smollm",
}
for _name, _whole in (("llama-bpe", True), ("smaug-bpe", False), ("tekken", True), ("qwen2", False)):
    _PRE["Split ByteLevel", GGUF_PRE_TOKENIZER_SPLITS[_name], _whole] = _name


def _refused(what: str) -> ConfigurationError:
    return ConfigurationError([f"format=gguf: {what}; give llama_cpp=FOLDER, whose converter is then called"])


def export(context: Context, source: str, tokenizer: Any, asked: Asked) -> dict[str, Any]:
    """Merge where there is an adapter, and write `<form>.gguf`: the form, and how many tensors are of which type."""
    config, kind = context.config, asked.gguf_type
    if asked.llama_cpp is None:
        architecture_of(models.local_folder(config.model, source))  # refuses others before anything is merged
    forms = [f for f in methods.served_forms(config.method) if f.base and f.adapter != "beside" and not f.is_quantized]
    whole = {form.name: form for form in forms}
    if asked.form is not None and asked.form not in whole:
        raise ConfigurationError([f"form={asked.form}: format=gguf is made of 16-bit weights: {', '.join(whole)}"])
    form = whole[asked.form or forms[0].name]
    context.progress.phase("merge")
    at = serve.Origin(config, source, context.weights, device.resolve(config), tokenizer)
    folder, name = serve.build(form, at), f"{form.name}_gguf_{kind}"
    context.progress.phase("write")
    target, tensors = context.folder / f"{name}.gguf", None
    if asked.llama_cpp is None:
        tensors = write(folder, tokenizer, target, kind, _ends(tokenizer, folder), f"{config.model.name} {name}")
    else:
        _convert(Path(asked.llama_cpp), folder, context.folder / "tokenizer", target, kind)
    return {"form": name, "tensors": tensors}


def _ends(tokenizer: Any, folder: Path) -> list[int]:
    """Tokens that end an answer: the tokenizer's own, the template's, those that the model's settings name."""
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends += [number for number in ids if number in tokenizer.all_special_ids][-1:]
    settings = folder / "generation_config.json"
    named = json.loads(settings.read_bytes()).get("eos_token_id") if settings.is_file() else None
    return list(dict.fromkeys([*ends, *([named] if isinstance(named, int) else named or [])]))


def _convert(llama_cpp: Path, folder: Path, tokenizer: Path, target: Path, kind: str) -> None:
    """Let llama.cpp's own converter write the file."""
    whole = target.with_suffix("")
    shutil.copytree(tokenizer, whole)
    for path in (path for pattern in WEIGHTS for path in folder.glob(pattern)):
        (whole / path.name).unlink(missing_ok=True)
        (whole / path.name).symlink_to(path.resolve())
    words: list[str | Path] = [sys.executable, llama_cpp / CONVERTER, whole, "--outfile", target, "--outtype", kind]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0 or not target.is_file():
        said = f"{CONVERTER} ended with code {done.returncode}; it said: {(done.stdout.splitlines() or ['-'])[-1]}"
        raise ConfigurationError([f"llama_cpp={llama_cpp}: {said}"])


def architecture_of(folder: Path) -> gguf.MODEL_ARCH:
    """llama.cpp's for a model's folder; ConfigurationError for one that is not written here."""
    named = (read_config(folder).get("architectures") or ["an unnamed architecture"])[0]
    if named not in FAMILY:
        raise _refused(f"{named} is none of {', '.join(FAMILY)}")
    rotation = AutoConfig.from_pretrained(folder).rope_parameters.get("rope_type", "default")
    if rotation not in _ROTATIONS:
        raise _refused(f"rope_type {rotation} is none of {', '.join(_ROTATIONS)}")
    return gguf.MODEL_ARCH[FAMILY[named]]


def write(folder: Path, tokenizer: Any, target: Path, kind: str, ends: Sequence[int], name: str) -> dict[str, int]:
    """Write a model's folder as GGUF, one tensor in memory at a time: how many are of which type.

    A row that is no multiple of 32 keeps F16 in place of Q8_0; a matrix with a value beyond F16's range keeps F32.
    The format has room for three `ends` of an answer. ConfigurationError: it has no place for something else.
    """
    architecture, config = architecture_of(folder), AutoConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _sizes(writer, config, window(read_config(folder)))
    _vocabulary(writer, tokenizer, config.vocab_size)
    for end, token in zip(_ENDS, ends, strict=False):
        getattr(writer, f"add_{end}_token_id")(token)
    kinds = {}
    for place, tensor in _tensors(folder, config, architecture):
        too_large = np.abs(tensor).max() > np.finfo(np.float16).max
        kinds[place] = Kind.F32 if tensor.ndim == 1 or too_large else Kind[kind.upper()]
        if kinds[place] is Kind.Q8_0 and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[Kind.Q8_0][0]:
            kinds[place] = Kind.F16
        in_bytes = gguf.quant_shape_to_byte_shape(tensor.shape, kinds[place])
        writer.add_tensor_info(place, in_bytes, np.dtype(np.uint8), math.prod(in_bytes), raw_dtype=kinds[place])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for place, tensor in _tensors(folder, config, architecture):
        writer.write_tensor_data(gguf.quants.quantize(tensor, kinds[place]))
    writer.close()
    return dict(Counter(kind.name for kind in kinds.values()))


def _sizes(writer: gguf.GGUFWriter, config: Any, local: int | None) -> None:
    """The context ends where local attention would begin, which llama.cpp does not have here."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = {
        "block_count": config.num_hidden_layers,
        "context_length": min(config.max_position_embeddings, local or config.max_position_embeddings),
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "rope_freq_base": config.rope_parameters["rope_theta"],
        "layer_norm_rms_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
    }
    for name, size in (sizes | dict.fromkeys(("key_length", "value_length", "rope_dimension_count"), head)).items():
        getattr(writer, f"add_{name}")(size)


def _tensors(folder: Path, config: Any, architecture: gguf.MODEL_ARCH) -> Iterator[tuple[str, np.ndarray]]:
    """(llama.cpp's name, values in fp32) of every tensor, in an order that stays the same."""
    places = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                if (place := places.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
                    raise _refused(f"{name} has no place in the format")
                tensor, layer = opened.get_tensor(name).float().numpy(), name.split(".")[-2]
                permute = architecture is gguf.MODEL_ARCH.LLAMA and layer in heads
                yield place, permuted(tensor, heads[layer]) if permute else tensor
    used = LlamaRotaryEmbedding(config).inv_freq.double()
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(len(used)).double() / len(used))
    if not torch.allclose(plain, used):
        yield "rope_freqs.weight", (plain / used).float().numpy()  # by what each frequency is divided


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head (first half, second half) in llama.cpp's order, one of each half in turn."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


def _vocabulary(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Tokens by id with their types, merges or scores, special tokens, chat template; ConfigurationError: no place."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = state["model"], {token["id"]: token["special"] for token in state["added_tokens"]}
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or []]
    if model["type"] != "BPE" or not merges:
        raise _refused(f"a tokenizer of type {model['type']} with {len(merges)} merges")
    of_pieces = bool(model.get("byte_fallback"))  # as sentencepiece's, whose merges go by the score of what comes out
    writer.add_tokenizer_model("llama" if of_pieces else "gpt2")
    writer.add_tokenizer_pre("default" if of_pieces else _pre(state))
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(size)])
    unknown = model.get("unk_token") if of_pieces else None
    writer.add_token_types([_type(texts.get(number), added.get(number), unknown) for number in range(size)])
    if of_pieces:
        ranks = {merge.replace(" ", ""): -float(place) for place, merge in reversed([*enumerate(merges)])}
        writer.add_token_scores([ranks.get(texts.get(number, ""), -float(len(merges))) for number in range(size)])
    else:
        writer.add_token_merges(merges)
    writer.add_add_space_prefix(of_pieces and tokenizer.tokenize("a")[0].startswith("▁"))
    plain = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(plain[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(plain[-1] == tokenizer.eos_token_id)
    for kind in ("bos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _type(text: str | None, special: bool | None, unknown: str | None) -> gguf.TokenType:
    """Of a token; `special`: None where it was not added to the vocabulary."""
    if text is None or text == unknown:
        return gguf.TokenType.UNUSED if text is None else gguf.TokenType.UNKNOWN
    if special is not None:
        return gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    return gguf.TokenType.BYTE if re.fullmatch("<0x[0-9A-F]{2}>", text) else gguf.TokenType.NORMAL


def _pre(state: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits a text before it merges."""
    steps = (state["pre_tokenizer"] or {}).get("pretokenizers", [state["pre_tokenizer"] or {}])
    names, normalizer = " ".join(str(step.get("type")) for step in steps), (state["normalizer"] or {}).get("type")
    by_bytes = steps[-1].get("use_regex") == ("Split" not in names) and not steps[-1].get("add_prefix_space")
    usual = by_bytes and normalizer in (None, "NFC") and steps[0].get("individual_digits", True)
    pattern, whole = steps[0].get("pattern", {}).get("Regex"), bool(state["model"].get("ignore_merges"))
    if not usual or (names, pattern, whole) not in _PRE:
        raise _refused(f"its tokenizer splits a text ({names}) as none of {', '.join(_PRE.values())} does")
    return _PRE[names, pattern, whole]


def read(file: Path, dtype: torch.dtype, device: str) -> Any:
    """The model in a GGUF file, dequantized by transformers, with the file's end tokens and frequencies."""
    reader, how = gguf.GGUFReader(file), {"gguf_file": file.name}
    config, tensors = AutoConfig.from_pretrained(file.parent, **how), {t.name: t.data for t in reader.tensors}
    if config.model_type == "llama":  # transformers reads neither these nor the frequencies
        config.attention_bias, config.mlp_bias = (f"blk.0.{n}.bias" in tensors for n in ("attn_q", "ffn_up"))
    options = {"dtype": dtype, "quantization_config": GgufConfig(dequantize=True), "output_loading_info": True, **how}
    loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, config=config, **options)
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise ConfigurationError([f"{file}: weights are missing: {', '.join(missing[:5])}"])
    if "rope_freqs.weight" in tensors:
        model.model.rotary_emb.inv_freq /= torch.from_numpy(np.array(tensors["rope_freqs.weight"]))
    ends = [reader.get_field(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    model.generation_config = GenerationConfig(eos_token_id=[int(end.contents()) for end in ends if end is not None])
    return model.to(device).eval()


def judge(context: Context) -> ServeResult:
    """Serve the evaluated form and the exported one in turn, on the run's prompts and test examples."""
    config, asked = context.config, from_json(Asked, (context.folder / ASKED).read_bytes())
    folder = Path(str(asked.exported))
    tokenizer = models.load_tokenizer(config.model, models.fetch(config.model, context.cache))
    data.prepare(config, tokenizer, data_folder(config))
    evaluated = next(form for form in methods.served_forms(config.method) if form.base is not None)
    exported = methods.Form(asked.form or f"{evaluated.name}_exported", "exported", base=evaluated.base)
    result = serve.run(context, [evaluated, exported], lambda at: _read(folder, at))
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".gguf", ".safetensors")]
    what, size = f"as exported: {', '.join(path.name for path in files)}", sum(path.stat().st_size for path in files)
    return replace(result, forms=[result.forms[0], replace(result.forms[1], is_what=what, disk_bytes=size)])


def _read(folder: Path, at: serve.Origin) -> Any:
    """The model in an exported folder: GGUF, an adapter beside its base, or weights as they are stored."""
    if files := sorted(folder.glob("*.gguf")):
        return read(files[0], at.device.compute_dtype, at.device.type)
    if (folder / "adapter_config.json").is_file():
        return methods.load_trained(at.config, at.source, folder, at.device.type, at.device.compute_dtype)
    return at.read(folder)
