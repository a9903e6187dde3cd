"""Model folders as users have them: loaded as they are, or refused by name before anything trains."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from bench.compose import compose
from bench.config import ModelConfig, RunConfig
from bench.mistakes import ConfigurationError
from bench.worker import device, evaluate, models

SIZE = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SIZE, "num_key_value_heads": 2, "intermediate_size": 64}
KINDS: dict[str, tf.PretrainedConfig] = {
    "llama": tf.LlamaConfig(**GATED),
    "tied": tf.LlamaConfig(**GATED, tie_word_embeddings=True),
    "gemma2": tf.Gemma2Config(**GATED, head_dim=8, sliding_window=64),
    "mistral": tf.MistralConfig(**GATED, sliding_window=64),
    "gpt2": tf.GPT2Config(vocab_size=261, n_embd=32, n_layer=2, n_head=4),
    "mixtral": tf.MixtralConfig(**GATED, num_local_experts=4),
    "bert": tf.BertConfig(**SIZE, intermediate_size=64),
    "xlnet": tf.XLNetConfig(vocab_size=261, d_model=32, n_layer=2, n_head=4, d_inner=64),
    "bert-decoder": tf.BertConfig(**SIZE, intermediate_size=64, is_decoder=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small model of each kind, with the tokenizer of single bytes."""
    root = tmp_path_factory.mktemp("models")
    models._make_random(root / "bytes")
    tokenizer = tf.AutoTokenizer.from_pretrained(root / "bytes")
    for name, config in KINDS.items():
        torch.manual_seed(0)
        config.eos_token_id, config.bos_token_id, config.pad_token_id = tokenizer.eos_token_id, None, 0
        tf.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def configured(folder: Path, *overrides: str) -> RunConfig:
    basis = ["experiment=smoke", "model=folder", f"model.location={folder}", "model.name=mine", "train.max_length=256"]
    return compose([*basis, *overrides, f"paths.cache={folder.parent / 'cache'}"], multirun=False)[0]


def checked(config: RunConfig) -> list[str]:
    source = models.fetch(config.model, Path(config.paths.cache))
    return models.check(config, source, models.load_tokenizer(config.model, source))


def problems_of(config: RunConfig) -> str:
    with pytest.raises(ConfigurationError) as caught:
        checked(config)
    return "\n".join(caught.value.problems)


def loaded(folder: Path, **options: Any) -> Any:
    model = configured(folder).model
    return models.load_weights(model, str(folder), dtype=torch.float32, device_map={"": "cpu"}, **options)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def settings(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / name).read_text())
    content = {key: value for key, value in (content | changes).items() if value is not None}
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def copy(folders: Path, tmp_path: Path) -> Path:
    """A sound folder to break."""
    return Path(shutil.copytree(folders / "llama", tmp_path / "copy"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("bert", "xlnet")])
def test_sound_models_pass(folders: Path, kind: str) -> None:
    config = configured(folders / kind)
    notes = checked(config)
    assert any("attention is eager" in note for note in notes) == (kind == "gemma2")
    assert any("sees 64 tokens back" in note for note in notes) == (kind in ("gemma2", "mistral"))
    assert checked(config) == notes  # the second time from what the first found


@pytest.mark.parametrize(("kind", "name"), [("bert", "BertLMHeadModel"), ("xlnet", "XLNetLMHeadModel")])
def test_an_encoder_sees_the_future(folders: Path, kind: str, name: str) -> None:
    assert f"{name} sees the future" in problems_of(configured(folders / kind))


# --- Weights by name ---


def without_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def not_a_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors["model.norm.weight"][0] = float("nan")
    return tensors


WEIGHTS = {
    "missing": (without_head, "are missing and would be drawn at random: lm_head.weight;"),
    "left over": (lambda t: t | {"v_head.weight": torch.zeros(2)}, "are not part of LlamaForCausalLM", ),
    "prefixed": (lambda t: {f"module.{name}": tensor for name, tensor in t.items()}, "are missing"),
    "mis-shaped": (lambda t: t | {"lm_head.weight": torch.zeros(262, 32)},
                   "lm_head.weight is (262, 32) and not (261, 32)"),
    "not finite": (not_a_number, "not finite (NaN or infinity): model.norm.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_not_the_models_are_refused_by_name(copy: Path, case: str) -> None:
    change, words = WEIGHTS[case]
    rewritten(copy, change)
    assert words in problems_of(configured(copy))


def test_a_tied_head_need_not_be_stored(folders: Path) -> None:
    assert "lm_head.weight" not in load_file(folders / "tied" / "model.safetensors")
    model = loaded(folders / "tied")
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_custom_code_is_named(copy: Path) -> None:
    settings(copy, "config.json", model_type="mine", auto_map={"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"})
    assert "model.trust_remote_code=true" in problems_of(configured(copy))


LAB = Path(__file__).parents[3] / "shared/lab/tiny_models.py"
REFUSED = {
    "broken-missing-head": "are missing and would be drawn at random: lm_head.weight;",
    "broken-not-finite": "not finite (NaN or infinity): model.norm.weight",
    "broken-added-tokens": "the tokenizer has tokens beyond them: <|call|>",
    "broken-no-end-token": "names no token that ends a text",
    "broken-lfs-pointer": "is a Git LFS pointer",
    "broken-pytorch-bin": "beside pytorch_model.bin",
}


@pytest.mark.slow
@pytest.mark.skipif(not LAB.is_file(), reason="needs the maker of folders in ../shared/lab")
def test_folders_made_by_others_pass_or_are_refused_by_name(tmp_path: Path) -> None:
    subprocess.run([sys.executable, LAB, tmp_path / "models"], check=True, capture_output=True)
    made = {path.name: path for path in (tmp_path / "models").iterdir() if path.is_dir()}
    assert {name for name in made if name.startswith("broken")} == set(REFUSED)
    for name, words in REFUSED.items():
        assert words in problems_of(configured(made[name]))
    for name in made.keys() - REFUSED.keys():
        assert all("broken" not in note for note in checked(configured(made[name])))


# --- Attention ---


def test_attention_is_what_the_model_supports(folders: Path) -> None:
    assert loaded(folders / "gemma2", attn_implementation="sdpa").config._attn_implementation == "eager"
    assert loaded(folders / "llama", attn_implementation="sdpa").config._attn_implementation == "sdpa"
    asked = problems_of(configured(folders / "gemma2", "hardware.attention=sdpa"))
    assert asked == "hardware.attention: Gemma2ForCausalLM does not support sdpa; use auto"


# --- Tokenizers and templates ---


def test_no_end_token(copy: Path) -> None:
    settings(copy, "tokenizer_config.json", eos_token=None, pad_token=None)
    assert "names no token that ends a text" in problems_of(configured(copy))


def test_the_end_token_pads_where_none_is_named(copy: Path) -> None:
    settings(copy, "tokenizer_config.json", pad_token=None)
    assert checked(configured(copy)) == []
    tokenizer = models.load_tokenizer(configured(copy).model, str(copy))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_an_empty_token_is_none(copy: Path) -> None:
    settings(copy, "tokenizer_config.json", bos_token="")
    tokenizer = models.load_tokenizer(configured(copy).model, str(copy))
    assert tokenizer.bos_token_id is None
    assert "" not in tokenizer.all_special_tokens


@pytest.mark.parametrize("is_used", [True, False])
def test_tokens_beyond_the_embedding(copy: Path, is_used: bool) -> None:
    """Refused where a prompt has them; a token of images, which none has, does no harm."""
    tokenizer = tf.AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    if is_used:
        tokenizer.chat_template = "<|call|>" + tokenizer.chat_template
    tokenizer.save_pretrained(copy)
    if is_used:
        assert "the embedding has 261 rows, and the tokenizer has tokens beyond them: <|call|>" in problems_of(
            configured(copy)
        )
    else:
        assert checked(configured(copy)) == []


TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
THINKING = TURNS + (
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def test_a_thinking_template_is_asked_for_the_answer_alone(copy: Path) -> None:
    question = [{"role": "user", "content": "?"}]
    model = replace(configured(copy).model, chat_template=THINKING)
    for options, thought in ({}, "<think>\n\n</think>\n\n"), ({"enable_thinking": True}, ""):
        tokenizer = models.load_tokenizer(replace(model, template=options), str(copy))
        text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        assert text == f"<|user|>?<|end|><|assistant|>{thought}"


# --- Generation ---

WILD = {
    "epsilon_cutoff": 0.1, "temperature": 0.5, "do_sample": True, "no_repeat_ngram_size": 1, "min_new_tokens": 7,
    "suppress_tokens": [5], "bad_words_ids": [[6]], "repetition_penalty": 9.0, "forced_eos_token_id": 1, "num_beams": 3,
    "early_stopping": "maybe", "eos_token_id": [1, 7],
}  # fmt: skip


def answers(folder: Path, model: Any) -> list[tuple[int, ...]]:
    config = configured(folder, "hardware.compute_dtype=float32")
    tokenizer = models.load_tokenizer(config.model, str(folder))
    how = {"max_new_tokens": 8, "batch_size": 2, "device": device.resolve(config)}
    prompts = [[20, 30, 40], [50, 60], [70, 80, 90, 100]]
    return [answer.ids for answer in evaluate.generate(model, tokenizer, prompts, **how)]


def test_greedy_is_greedy_and_saving_works_whatever_the_generation_config_holds(copy: Path, tmp_path: Path) -> None:
    expected = answers(copy, loaded(copy))
    (copy / "generation_config.json").write_text(json.dumps(WILD))
    settings(copy, "config.json", no_repeat_ngram_size=1, temperature=0.3)  # where older folders have them
    model = loaded(copy)
    assert answers(copy, model) == expected
    model.save_pretrained(tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    assert again.generation_config.eos_token_id == [1, 7]


def test_answers_stop_at_the_end_of_turn(copy: Path) -> None:
    model = loaded(copy)
    first = answers(copy, model)[0]
    models.stop_at(model, {first[2]})
    assert answers(copy, model)[0] == first[: first.index(first[2])]


def test_the_header_that_a_template_puts_before_every_answer_is_not_scored(copy: Path) -> None:
    """Such as an empty thought, where a template has no switch for it."""
    tokenizer = models.load_tokenizer(configured(copy).model, str(copy))
    ids = tokenizer("<think>\n\n</think>\n\n42<|end|>", add_special_tokens=False)["input_ids"]
    assert evaluate.answer_header(tokenizer, {"answer_ids": ids, "reference": "42"}) == "<think>\n\n</think>\n\n"
    model = loaded(copy)
    prompt = [20, 30, 40]
    how = {"max_new_tokens": 6, "batch_size": 1, "device": device.resolve(configured(copy))}
    (plain,) = evaluate.generate(model, tokenizer, [prompt], **how)
    (cut,) = evaluate.generate(model, tokenizer, [prompt], header=plain.text[:3], **how)
    assert cut.text == plain.text[3:]


# --- the hub ---


def test_one_layout_of_the_weights_is_downloaded() -> None:
    kept = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
            "tokenizer.model", "additional_chat_templates/tool.jinja"]  # fmt: skip
    left = ["consolidated.safetensors", "original/consolidated.00.pth", "original/params.json", "pytorch_model.bin",
            "onnx/model.safetensors", "README.md"]  # fmt: skip
    patterns = {"allow_patterns": models._WANTED, "ignore_patterns": models._UNWANTED}
    assert list(filter_repo_objects([*kept, *left], **patterns)) == kept


@pytest.mark.parametrize("hidden", [False, True])
def test_a_gated_model_asks_for_licence_and_login(monkeypatch: pytest.MonkeyPatch, hidden: bool) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        response = SimpleNamespace(headers={}, request=None, status_code=403)
        error = GatedRepoError("403 Client Error. (Request ID: 1)", response=response)
        if hidden:  # as transformers does
            raise OSError("You are trying to access a gated repo.\nMake sure to have access to it") from error
        raise error

    monkeypatch.setattr(models, "hf_hub_download", refuse)
    model = ModelConfig(name="llama", source="hub", location="meta-llama/Llama-3.1-8B-Instruct")
    with pytest.raises(ConfigurationError, match=r"8B-Instruct is gated, .*hf auth login"):
        models.fetch(model, Path("cache"))


def test_a_frozen_head_multiplies_the_rows_of_a_batch_at_once() -> None:
    """Else PyTorch copies the head for each row: gigabytes, in the first step of each batch of answers."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, vocab_size=24)).requires_grad_(False).eval()
    ids, seen = torch.arange(12).view(3, 4), list[bool]()
    expected = model(ids, logits_to_keep=1).logits
    models.take_rows_together(model)
    model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, expected)
    assert seen == [True]
