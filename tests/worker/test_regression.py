"""Running suites on a tiny random model: the same items, the same scores, values that are means of items."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.compose import compose
from bench.config import ModelConfig, SuiteConfig
from bench.mistakes import ConfigurationError
from bench.record import KL_METRIC, from_json, to_json
from bench.worker import data, device, divergence, models, regression
from bench.worker.divergence import Outcome
from bench.worker.loss import inference
from bench.worker.regression import check_tasks, count_suite, run_suite, window
from bench.worker.scoring import PrefixScorer, branched, takes_branches
from bench.worker.suites.quick import MAX_NEW_TOKENS, quick_tasks

BLIMP = Path(__file__).parents[3] / "shared" / "data" / "blimp"
CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-text token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*letters, "<end>"])}
    core = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        bos_token_id=256,
        eos_token_id=256,
    )
    return LlamaForCausalLM(config)


def quick(items_per_task: int | None = 4, tasks: tuple[str, ...] = ()) -> SuiteConfig:
    return SuiteConfig(name="quick", source="quick", items_per_task=items_per_task, tasks=list(tasks))


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables that `datasets` makes go below the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache" / "datasets"))


def run(suite: SuiteConfig, model: Any, tokenizer: Any) -> Outcome:
    return run_suite(suite, model, tokenizer, max_length=512)


@pytest.fixture
def writing_folder(tmp_path: Path) -> Path:
    """A suite of one task that writes 1,280 tokens, as IFEval does."""
    (tmp_path / "items.jsonl").write_text('{"q": "Write.", "a": "x"}\n')
    (tmp_path / "essay.yaml").write_text(
        f"""task: essay
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/items.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 1280}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    return tmp_path


@pytest.mark.parametrize(("positions", "fits"), [(1280, False), (2048, True)])
def test_answers_longer_than_the_window_are_refused_before_training(
    smoke, writing_folder: Path, tmp_path: Path, positions: int, fits: bool
) -> None:
    given = ["suite=local", f"suite.path={writing_folder}", f"model.max_context={positions}", "train.max_length=64"]
    (config,) = compose(smoke(*given), multirun=False)
    assert window(config) == positions  # whatever the training examples' length is
    if fits:
        check_tasks(config)
        return
    with pytest.raises(ConfigurationError, match="essay writes 1280 tokens, which leaves no room"):
        check_tasks(config)


def test_a_model_against_itself_gives_identical_items(model, tokenizer, tmp_path) -> None:
    first, second = (run(quick(), model, tokenizer) for _ in range(2))
    assert first == second
    assert [item.item_id for item in first.items] == [item.item_id for item in second.items]
    assert [task.task for task in first.tasks] == [task.name for task in quick_tasks()]
    assert all(task.items == 4 for task in first.tasks)
    assert {t.task: t.items_available for t in first.tasks} == {t.name: len(t.documents) for t in quick_tasks()}
    assert len({(item.task, item.item_id) for item in first.items}) == len(first.items)


def test_another_model_gets_the_same_items_and_other_scores(model, tokenizer, tmp_path) -> None:
    suite = quick(tasks=("prose",))
    before = run(suite, model, tokenizer)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    after = run(suite, model, tokenizer)
    assert [item.item_id for item in before.items] == [item.item_id for item in after.items]
    assert [i.score for i in before.items] != [i.score for i in after.items]


def test_values_are_weighted_means_of_items(model, tokenizer, tmp_path) -> None:
    outcome = run(quick(), model, tokenizer)
    for task in outcome.tasks:
        own = [item for item in outcome.items if item.task == task.task]
        value = sum(i.score * i.weight for i in own) / sum(i.weight for i in own)
        assert task.value == pytest.approx(value)
        assert task.higher_is_better == (task.metric != "bits_per_byte")


def test_bits_per_byte_of_a_model_that_knows_nothing(model, tokenizer, tmp_path) -> None:
    """Uniform over 257 tokens, one token a byte: log2(257) bits per byte, for every text."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
    outcome = run(quick(tasks=("prose", "code")), model, tokenizer)
    documents = {task.name: task.documents for task in quick_tasks()}
    assert [task.value for task in outcome.tasks] == pytest.approx([math.log2(257)] * 2)
    assert [i.weight for i in outcome.items[:4]] == [len(d["text"].encode()) for d in documents["prose"][:4]]


def test_a_score_that_is_not_finite_is_unknown_and_can_be_read_back(model, tokenizer, tmp_path) -> None:
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    outcome = run(quick(tasks=("prose", "addition")), model, tokenizer)
    by_task = {task.task: task for task in outcome.tasks}
    assert by_task["prose"].value is None  # bits per byte
    assert by_task["addition"].value is not None  # right or wrong is always known
    assert {item.score for item in outcome.items if item.task == "prose"} == {None}
    for part in [*outcome.tasks, *outcome.items]:
        assert from_json(type(part), to_json(part)) == part


def test_ties_score_no_more_than_chance(model, tokenizer, tmp_path) -> None:
    """A model that finds all choices equally likely always takes one position: right once in four."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
    (task,) = run(quick(40, tasks=("addition",)), model, tokenizer).tasks
    assert task.value == task.chance == 0.25


def test_generation_is_greedy_and_in_chat_form(model, tokenizer, tmp_path, monkeypatch) -> None:
    model.generation_config.update(do_sample=True, temperature=0.9, repetition_penalty=1.5)
    calls = []
    generate = model.generate

    def record(**arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return generate(**arguments)

    monkeypatch.setattr(model, "generate", record)
    run(quick(tasks=("instructions",)), model, tokenizer)
    assert calls
    assert all(c["do_sample"] is False and c["num_beams"] == 1 and c["repetition_penalty"] == 1.0 for c in calls)
    prompts = [tokenizer.decode(row, skip_special_tokens=True) for c in calls for row in c["input_ids"]]
    assert all(p.startswith("<user>") and p.endswith("<assistant>") for p in prompts)


def test_batches_hold_positions_and_change_nothing(model, tokenizer, tmp_path, monkeypatch) -> None:
    """One token a byte: prompts of the instructions have 40 to 100 tokens, and each is followed by 20."""
    suite, calls, scored = quick(tasks=("capitals", "prose", "instructions")), [], []
    score, generate = PrefixScorer._score, model.generate
    monkeypatch.setattr(PrefixScorer, "_score", lambda self, rows: scored.append(rows) or score(self, rows))
    monkeypatch.setattr(model, "generate", lambda **how: calls.append(how["input_ids"].shape) or generate(**how))
    together = run(suite, model, tokenizer)
    assert (len(calls), len(scored)) == (1, 3)  # 16 rows of 512: answers, choices, and texts, whose logits are all kept
    monkeypatch.setattr(data, "ROW", 16)  # 256 positions
    calls.clear(), scored.clear()
    apart = run(suite, model, tokenizer)
    assert len(calls) > 1
    assert all(rows == 1 or rows * (length + MAX_NEW_TOKENS) <= 256 for rows, length in calls)
    taken = [len(rows) * max(row.length for row in rows) + sum(row.kept for row in rows) for rows in scored]
    assert all(len(rows) == 1 or positions <= 256 for rows, positions in zip(scored, taken, strict=True))
    assert sum(rows for rows, _ in calls) == 4
    assert [item.score for item in apart.items] == pytest.approx([item.score for item in together.items], rel=1e-5)


def test_nothing_is_written(model, tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(quick(2), model, tokenizer)
    assert list(tmp_path.rglob("*")) == []


def test_unknown_task_stops_before_anything_runs(model, tokenizer, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'capitals'"):
        run(quick(tasks=("capitls",)), model, tokenizer)


def test_none_measures_nothing(model, tokenizer, tmp_path) -> None:
    assert run(SuiteConfig(name="none", source="none"), model, tokenizer) == Outcome([], [])


@pytest.fixture
def yaml_folder(tmp_path: Path) -> Path:
    """A user's folder: a group of two tasks over a JSON file, scored by acc and acc_norm."""
    rows = [{"q": f"Number {n} is", "options": ["small", "very large"], "right": n % 2} for n in range(6)]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "shared.yaml").write_text(
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: options\ndoc_to_target: right\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n"
    )
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text(f"include: shared.yaml\ntask: {name}\n")
    (folder / "group.yaml").write_text("group: both\ntask: [first, second]\n")
    return folder


def local(folder: Path, **settings: Any) -> SuiteConfig:
    return SuiteConfig(name="local", source="local", path=str(folder), **settings)


def test_own_yaml_tasks_run_under_their_own_names(model, tokenizer, tmp_path, yaml_folder) -> None:
    outcome = run(local(yaml_folder), model, tokenizer)
    assert [(t.task, t.metric, t.items, t.chance) for t in outcome.tasks] == [
        ("first", "acc_norm", 6, 0.5),
        ("second", "acc_norm", 6, 0.5),
    ]
    assert (tmp_path / "cache" / "datasets").is_dir()


def test_a_suite_is_counted_without_being_run(model, tokenizer, tmp_path, yaml_folder, monkeypatch) -> None:
    """One token a byte. An item: 11 of its question, a space that both answers begin with, "smal" and "very larg"."""
    texts = 120
    monkeypatch.setattr(regression, "general_texts", lambda *_: [divergence.Text("prose_kl", "a", [1] * texts)])
    monkeypatch.setattr(model, "generate", None)
    counted = count_suite(local(yaml_folder), model, tokenizer, 512)
    assert counted == (2 * 6 * (11 + 1 + 4 + 9) + texts, 0, 6)
    answers = count_suite(quick(3, tasks=("instructions",)), model, tokenizer, 512)
    assert answers == (texts, 3 * MAX_NEW_TOKENS, 3)


def test_groups_of_tags_and_tasks_are_loaded_once(model, tokenizer, tmp_path, yaml_folder) -> None:
    for name in ("first", "second"):
        with (yaml_folder / f"{name}.yaml").open("a") as file:
            file.write("tag: tagged\n")
    (yaml_folder / "group.yaml").write_text("group: both\ntask: [tagged]\n")
    outcome = run(local(yaml_folder), model, tokenizer)
    assert [t.task for t in outcome.tasks] == ["first", "second"]


def test_one_filter_of_a_shipped_generation_task_is_kept(model, tokenizer, tmp_path) -> None:
    """lm-eval's own gsm8k (few-shot, two filters), over rows of our own."""
    lm_eval = Path(str(importlib.util.find_spec("lm_eval").origin)).parent
    rows = [{"question": f"What is {n} plus 1?", "answer": f"It is {n + 1}. #### {n + 1}"} for n in range(6)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(
        f"include: {lm_eval / 'tasks' / 'gsm8k' / 'gsm8k.yaml'}\ntask: sums\ndataset_path: json\n"
        f"dataset_name: null\ndataset_kwargs: {{data_files: {{train: {data}, test: {data}}}}}\n"
        "num_fewshot: 2\ngeneration_kwargs: {until: [], max_gen_toks: 4, do_sample: true}\n"
    )
    outcome = run(local(tmp_path, tasks=["sums"]), model, tokenizer)
    assert [(t.task, t.metric, t.items, t.chance) for t in outcome.tasks] == [("sums", "exact_match", 6, None)]
    assert len(outcome.items) == 6


def test_a_task_whose_metric_is_no_mean_is_refused(model, tokenizer, tmp_path, yaml_folder) -> None:
    shared = yaml_folder / "shared.yaml"
    shared.write_text(
        shared.read_text().split("metric_list")[0]
        + "metric_list:\n  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}\n"
    )
    with pytest.raises(ConfigurationError, match="first has no metric that is a mean"):
        run(local(yaml_folder, tasks=["first"]), model, tokenizer)


@pytest.mark.skipif(not BLIMP.is_dir(), reason="needs the BLiMP files in ../shared/data/blimp")
def test_minimal_pair_files_run_as_tasks(model, tokenizer, tmp_path) -> None:
    outcome = run(local(BLIMP, items_per_task=10), model, tokenizer)
    assert [t.task for t in outcome.tasks] == [file.stem for file in sorted(BLIMP.glob("*.jsonl"))]
    assert all(t.metric == "acc" and t.chance == 0.5 and t.items == 10 for t in outcome.tasks)


TEXTS = [
    ("The capital of France is", [" Paris", " Rome", " Berlin", " Madrid and more"]),
    ("The capital of Norway is", [" Oslo", " Bergen", " Rome", " x"]),
    ("Q", [" a", " an answer much longer than its question"]),
    ("", ["The keys to the cabinet are here.", "The keys to the cabinet is here."]),
]


@pytest.fixture(scope="module")
def loaded(shared_cache: Path):
    config = ModelConfig(name="tiny-random", source="random")
    source = models.locate(config, shared_cache)
    model = models.load_weights(config, source, dtype=torch.float32, device_map={"": "cpu"})
    return {"pretrained": model, "tokenizer": models.load_tokenizer(config, source), "batch_size": 4}


def requests(lm: HFLM) -> list[tuple]:
    made = []
    for context, continuations in TEXTS:
        for continuation in continuations:
            start = lm.tok_encode(context) if context else [lm.prefix_token_id]
            made.append(((context, continuation), start, lm.tok_encode(continuation)))
    return made


@pytest.mark.parametrize("max_length", [256, 40])  # 40: long sequences are cut on the left
def test_the_scores_equal_lm_evals(loaded, max_length: int) -> None:
    theirs, ours = (kind(**loaded, max_length=max_length) for kind in (HFLM, PrefixScorer))
    wanted = theirs._loglikelihood_tokens(requests(theirs), disable_tqdm=True)
    given = ours._loglikelihood_tokens(requests(ours))
    assert [nats for nats, _ in given] == pytest.approx([nats for nats, _ in wanted], rel=1e-5)
    assert [greedy for _, greedy in given] == [greedy for _, greedy in wanted]


def test_a_likely_continuation_is_greedy(loaded) -> None:
    lm = PrefixScorer(**loaded, max_length=256)
    prompt = lm.tok_encode("abc")
    best = loaded["pretrained"](torch.tensor([prompt])).logits[0, -1].argmax().item()
    (first, second) = lm._loglikelihood_tokens([(None, prompt, [best]), (None, prompt, [best - 1])])
    assert first[1]
    assert not second[1]


@pytest.mark.slow
def test_a_deep_model_takes_branches_in_16_bit_too(smoke, shared_cache: Path) -> None:
    """Thirty layers: without a mask its logits move by a tenth of their spread, all of it rounding."""
    (config,) = compose(smoke("model=smollm2-135m"), multirun=False)
    source = models.locate(config.model, shared_cache)
    assert takes_branches(models.load_weights(config.model, source, dtype=torch.bfloat16, device_map={"": "cpu"}))


def test_items_are_joined_when_half_is_shared() -> None:
    question = list(range(10))
    rows = branched([(None, question, [1, 2]), (None, question, [3]), (None, [7], [8]), (None, [7], [9, 9, 9])], 100)
    assert [row.members for row in rows] == [[0, 1], [2], [3]]
    assert rows[0].shared == 10
    assert rows[0].length == 11  # the prefix and one token: last tokens are never read


def test_rows_stay_within_the_models_length() -> None:
    question = list(range(10))
    rows = branched([(None, question, [i, i, i]) for i in range(6)], 17)
    assert [len(row.members) for row in rows] == [3, 3]
    assert all(row.length <= 17 for row in rows)


@pytest.fixture
def setting(smoke):
    """(config, source, tokenizer, device) of the tiny model, with two short texts of each kind."""
    (config,) = compose(smoke("method=base", "hardware.compute_dtype=float32"), multirun=False)
    source = models.locate(config.model, Path(config.paths.cache))
    return config, source, models.load_tokenizer(config.model, source), device.resolve(config)


@pytest.fixture(autouse=True)
def few_texts(monkeypatch) -> None:
    everything = divergence.general_texts
    monkeypatch.setattr(divergence, "general_texts", lambda *given: everything(*given)[30:34])


def moved(setting) -> torch.nn.Module:
    config, source, _, _ = setting
    model = models.load_weights(config.model, source, dtype=torch.float32, device_map={"": "cpu"})
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    return model


def measured(setting, model: torch.nn.Module, reference: divergence.Reference) -> divergence.Outcome:
    with inference(model, setting[3]):
        return divergence.divergence(model, reference, setting[3])


def exact(setting, model: torch.nn.Module) -> list[float]:
    """By torch's own function over the whole vocabulary, one text at a time."""
    config, source, tokenizer, _ = setting
    base = models.load_weights(config.model, source, dtype=torch.float32, device_map={"": "cpu"}).eval()
    values = []
    for text in divergence.general_texts(tokenizer, config.suite):
        ids = torch.tensor([text.token_ids])
        with torch.no_grad():
            of_base, of_model = (m(ids).logits[0, :-1].double().log_softmax(-1) for m in (base, model.eval()))
        kl = torch.nn.functional.kl_div(of_model, of_base, log_target=True, reduction="none").sum(-1)
        values.append(float(kl.mean()))
    return values


def test_the_base_against_itself_is_nothing(setting) -> None:
    config, source, tokenizer, resolved = setting
    base = models.load_weights(config.model, source, dtype=torch.float32, device_map={"": "cpu"})
    outcome = measured(setting, base, divergence.reference_of(config, source, tokenizer, resolved))
    assert [item.score for item in outcome.items] == [0.0] * 4
    assert [(task.task, task.metric, task.value) for task in outcome.tasks] == [
        ("prose_kl", KL_METRIC, 0.0),
        ("code_kl", KL_METRIC, 0.0),
    ]


def test_it_is_the_divergence_where_nothing_is_lumped(setting, monkeypatch) -> None:
    monkeypatch.setattr(divergence, "TOP", 10**9)
    config, source, tokenizer, resolved = setting
    model = moved(setting)
    outcome = measured(setting, model, divergence.reference_of(config, source, tokenizer, resolved))
    assert [item.score for item in outcome.items] == pytest.approx(exact(setting, model), rel=1e-4)


def test_lumping_lowers_it(setting, monkeypatch) -> None:
    monkeypatch.setattr(divergence, "TOP", 8)
    config, source, tokenizer, resolved = setting
    model = moved(setting)
    outcome = measured(setting, model, divergence.reference_of(config, source, tokenizer, resolved))
    assert all(0 < item.score <= whole for item, whole in zip(outcome.items, exact(setting, model), strict=True))


def test_the_reference_is_made_once(setting, monkeypatch) -> None:
    config, source, tokenizer, resolved = setting
    first = divergence.reference_of(config, source, tokenizer, resolved)
    monkeypatch.setattr(divergence, "load_weights", lambda *_, **__: pytest.fail("loaded again"))
    second = divergence.reference_of(config, source, tokenizer, resolved)
    assert torch.equal(first.top_ids, second.top_ids)
    assert torch.equal(first.rest_log_probability, second.rest_log_probability)
