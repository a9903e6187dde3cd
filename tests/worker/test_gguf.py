"""A GGUF file is the model: read back tensor by tensor by `gguf`, and as a model by transformers' own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_llama import BYTES, SPECIAL, TEMPLATE, TEXT, byte_level, finished, saved
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from bench.mistakes import ConfigurationError
from bench.worker.gguf import permuted, read, write


def of_pieces() -> PreTrainedTokenizerFast:
    """A byte-pair encoding as sentencepiece's, which falls back to bytes."""
    tokens = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokens.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", *SPECIAL, *in_bytes], show_progress=False)
    tokens.train_from_iterator(TEXT.split(), trainer)
    content = json.loads(tokens.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return finished(Tokenizer.from_str(json.dumps(content)))


def tensors(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """llama.cpp's name -> (type, values)."""
    return {t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(file).tensors}


def field(file: Path, name: str) -> Any:
    found = gguf.GGUFReader(file).get_field(name)
    return None if found is None else found.contents()


def test_rows_of_a_head_are_taken_in_turn_from_its_halves() -> None:
    rows = np.arange(12.0).reshape(12, 1)  # two heads of six rows
    assert permuted(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_there_within_half_a_step(tmp_path: Path, tied: bool) -> None:
    model = saved(tmp_path, "llama", tie_word_embeddings=tied)
    counts = write(tmp_path, byte_level(), file := tmp_path / "a.gguf", "f16", [2], "mine")
    found = tensors(file)
    assert ("output.weight" in found) == (not tied)
    assert counts == {"F32": 5, "F16": 15 if tied else 16}
    assert {kind for name, (kind, _) in found.items() if "norm" in name} == {"F32"}
    layer = model.model.layers[1]
    for name, ours, heads in (
        ("token_embd", model.model.embed_tokens, None), ("output_norm", model.model.norm, None),
        ("blk.1.attn_q", layer.self_attn.q_proj, 4), ("blk.1.attn_k", layer.self_attn.k_proj, 2),
        ("blk.1.attn_v", layer.self_attn.v_proj, None), ("blk.1.ffn_down", layer.mlp.down_proj, None),
    ):  # fmt: skip
        values = ours.weight.detach().float().numpy()
        values = values if heads is None else permuted(values, heads)
        half = np.spacing(np.abs(values).astype(np.float16)).astype(np.float32) / 2
        assert (np.abs(found[f"{name}.weight"][1] - values) <= half).all(), name


def test_rows_that_make_no_whole_blocks_keep_f16(tmp_path: Path) -> None:
    model = saved(tmp_path, "llama", intermediate_size=80, tie_word_embeddings=True)
    counts = write(tmp_path, byte_level(), file := tmp_path / "a.gguf", "q8_0", [2], "mine")
    found = tensors(file)
    assert counts == {"F32": 5, "F16": 2, "Q8_0": 13}
    assert [name for name, (kind, _) in found.items() if kind == "F16"] == [
        f"blk.{n}.ffn_down.weight" for n in range(2)
    ]
    rows = model.model.layers[0].mlp.up_proj.weight.detach().float().numpy().reshape(-1, 32)
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    off = np.abs(found["blk.0.ffn_up.weight"][1].reshape(-1, 32) - rows)
    assert (off <= 0.5 * step + 127 * step * 2**-11).all()  # half a step, and the scale's own rounding to F16


def test_a_value_beyond_f16_keeps_its_matrix_in_f32(tmp_path: Path) -> None:
    model = saved(tmp_path, "llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = 1e6
    model.save_pretrained(tmp_path)
    assert write(tmp_path, byte_level(), tmp_path / "a.gguf", "f16", [2], "mine")["F32"] == 6
    kind, values = tensors(tmp_path / "a.gguf")["blk.0.ffn_up.weight"]
    assert (kind, values[3, 5]) == ("F32", np.float32(999424))  # 1e6 in bf16


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"tie_word_embeddings": True}), ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 32}), ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
        ("mistral", {}), ("qwen2", {"tie_word_embeddings": True}), ("qwen3", {"head_dim": 128}),
    ],
)  # fmt: skip
def test_transformers_reads_the_same_model(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    saved(tmp_path, kind, **more)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    write(tmp_path, byte_level(), tmp_path / "a.gguf", "f16", [2, 3], "mine")
    back, ids = read(tmp_path / "a.gguf", torch.float32, "cpu"), torch.arange(24).reshape(1, 24) * 7 % 300
    with torch.no_grad():
        own, other = model(input_ids=ids).logits, back(input_ids=ids).logits
    assert (own - other).abs().max() < 1e-4 * own.abs().max()
    assert back.generation_config.eos_token_id == [2, 3]
    assert field(tmp_path / "a.gguf", f"{'llama' if kind == 'mistral' else kind}.context_length") == (
        32 if kind == "mistral" else 128
    )


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


PRE = {
    "gpt-2": lambda: byte_level(),
    "smollm": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])),
    "llama-bpe": lambda: byte_level(split(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), whole=True),
    "qwen2": lambda: byte_level(split(GGUF_PRE_TOKENIZER_SPLITS["qwen2"])),
    "default": of_pieces,
}


@pytest.mark.parametrize("pre", PRE)
def test_the_tokenizer_comes_back(tmp_path: Path, pre: str) -> None:
    tokenizer = PRE[pre]()
    saved(tmp_path, "llama")
    write(tmp_path, tokenizer, file := tmp_path / "a.gguf", "f16", [tokenizer.eos_token_id], "mine")
    assert field(file, "tokenizer.ggml.pre") == pre
    ids = {name: field(file, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    assert ids == {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}
    assert not field(file, "tokenizer.ggml.add_bos_token")
    types = field(file, "tokenizer.ggml.token_type")
    assert len(types) == 336
    assert {types[tokenizer.convert_tokens_to_ids(token)] for token in SPECIAL} == {gguf.TokenType.CONTROL}
    assert types[-1] == gguf.TokenType.UNUSED
    back = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    texts = {"plain": TEXT, "digits": "two\n\nlines, 12345 é", "chat": "<|user|>the mats sat<|end|>"}
    # llama.cpp splits digits and begins a text after a special token with a space; transformers' reading does not
    texts.pop({"smollm": "digits", "default": "chat"}.get(pre, ""), None)
    for text in texts.values():
        ids, own = (one(text, add_special_tokens=False)["input_ids"] for one in (back, tokenizer))
        assert ids == own
    assert back.chat_template == TEMPLATE


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    saved(tmp_path / "yarn", "llama", rope_parameters=yarn)
    saved(tmp_path / "llama", "llama")
    for folder, tokenizer, words in (
        ("gpt2", byte_level(), "GPT2LMHeadModel is none of LlamaForCausalLM, MistralForCausalLM"),
        ("yarn", byte_level(), "rope_type yarn is none of default, linear, llama3"),
        ("llama", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), BYTES])), "splits a text"),
        ("llama", finished(Tokenizer(models.WordLevel({"<|end|>": 0}))), "a tokenizer of type WordLevel"),
    ):
        with pytest.raises(ConfigurationError, match=words) as error:
            write(tmp_path / folder, tokenizer, tmp_path / "a.gguf", "f16", [2], "mine")
        assert "llama_cpp=FOLDER" in str(error.value)
        assert not (tmp_path / "a.gguf").exists()


def test_greedy_answers_are_equal(tmp_path: Path) -> None:
    model = saved(tmp_path, "llama", tie_word_embeddings=True)
    write(tmp_path, byte_level(), tmp_path / "a.gguf", "f16", [2], "mine")
    back = read(tmp_path / "a.gguf", torch.bfloat16, "cpu")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.bfloat16)
    prompts = torch.randint(4, 290, (20, 8), generator=torch.Generator().manual_seed(1))
    how: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    own, ours, theirs = (one.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **how)
                         for one in (model, back, plain))  # fmt: skip
    assert torch.equal(own, ours)
    assert torch.equal(own, theirs)
