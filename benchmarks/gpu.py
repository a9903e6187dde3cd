"""Ten checks of the harness on one GPU, in about ten minutes; what they gave on an H200 is in docs/maintainers/gpu.md.

    python -m benchmarks.gpu --minutes 10 --out gpu       # on a GPU machine; needs neither hub nor network
    python -m benchmarks.gpu --tiny --out gpu             # the same code with toy shapes, on a CPU too

Models have real shapes and random weights, the task has GSM8K's lengths, training runs are the harness's own worker.
Each check is a process with a time limit, in the order of their worth, and writes each figure when it has it, so that a
kill loses only the check at work: OUT/check-NN.json, OUT/summary.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
TOY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {  # name: (shape, layers, tied embeddings, the smaller model whose files it shares)
    "1b": (LLAMA_1B, 16, True, None),
    "8b-8-layers": (LLAMA_8B, 8, False, None),
    "8b": (LLAMA_8B, 32, False, "8b-8-layers"),
}
THIRTY_STEPS = ["train=gpu", "train.compile=regional", "train.batch_size=16", "train.max_steps=30", "suite=none",
                "train.heldout_points=1", "task.validation_examples=16", "task.test_examples=16"]  # fmt: skip
TOY_STEPS = ["train.batch_size=4", "train.micro_batch=2", "train.max_steps=5"]
CUDNN = "TORCH_CUDNN_SDPA_DEPRIORITIZED"  # the worker sets it; the checks that load a model themselves do too
GIB = 2**30
DEVICE_ONLY = 3  # exit code of a check that says nothing, or not all, on a CPU


class Bench:
    """What a check is given: models, the task, training runs, and where its figures go."""

    def __init__(self, out: Path, tiny: bool, number: int = 0):
        import torch

        self.out, self.tiny, self.number, self.work = out, tiny, number, out / "work"
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rows: list[dict[str, Any]] = []
        if self.device == "cpu" and not tiny:
            device_only("without --tiny every check does")

    def note(self, what: str, **figures: Any) -> None:
        """Keep one row of figures, on disk at once."""
        self.rows.append({"what": what, **figures})
        (self.out / f"rows-{self.number:02}.json").write_text(json.dumps(self.rows))

    def model(self, name: str) -> Path:
        """The folder of a model with random weights, made when it is first asked for."""
        folder = self.work / "models" / name
        if not (folder / "config.json").exists():
            write_model(folder, self, *MODELS[name])
        return folder

    def config(self, model: str, method: str, *extra: str) -> Any:
        """The harness's description of a run."""
        from bench.compose import compose

        task = write_task(self.work / "task.jsonl")
        settings = [f"method={method}", "model=folder", f"model.location={self.model(model)}", "model.max_context=4096",
                    "task=jsonl", f"task.train_file={task}", "task.prompt={question}", "task.target={answer}",
                    *THIRTY_STEPS, *(TOY_STEPS if self.tiny else [])]  # fmt: skip
        settings += [f"paths.{name}={self.work / name}" for name in ("results", "artifacts", "cache")]
        settings += ["train.compile=off"] if self.device == "cpu" else []
        return compose([*settings, *extra], multirun=False)[0]

    def train(self, what: str, model: str, method: str, *extra: str) -> dict[str, Any]:
        """Run the worker's training stage and note its figures, or how it ended; returns what it wrote."""
        from bench.identity import data_folder
        from bench.sweep.child import run_stage
        from bench.sweep.execute import write_plan
        from bench.worker import data, models

        config = self.config(model, method, *extra)
        prepared = data.prepare(config, models.load_tokenizer(config.model, config.model.location), data_folder(config))
        folder = write_plan(config)
        outcome = run_stage(folder, "train", 240)
        if outcome.failure:
            words = {key: getattr(outcome.failure, key) for key in ("phase", "message", "next_step")}
            self.note(what, status=str(outcome.status), **words, tail=outcome.failure.log_tail[-1500:])
            return {}
        result: dict[str, Any] = json.loads((folder / "train.json").read_text())
        result["per_step"] = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        planned = planned_gib(config, prepared.tokens_per_example_max, result)
        log = (folder / "train.log").read_text(errors="replace")
        self.note(what, **figures_of(result), **compiler_figures(log, result), planned_gib=planned)
        return result

    def load(self, name: str, method: str, adapter: bool = False) -> Any:
        """A model as the harness loads it, in this process, in evaluation mode; `adapter`: a young one beside it."""
        import torch

        from bench.worker import methods

        config = self.config(name, method)
        model = methods.load_base(config, config.model.location, self.device, torch.bfloat16)
        if adapter:
            model = methods.make_trainable(model, config.method, 0).to(torch.bfloat16)
        return model.eval()


def write_model(folder: Path, bench: Bench, shape: Any, layers: int, tied: bool, shared: str | None) -> None:
    """A Llama of random bf16 weights, a file a layer; files that the smaller model has are linked."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from bench.config import ModelConfig
    from bench.worker import models

    config = LlamaConfig(**(TOY if bench.tiny else shape), num_hidden_layers=2 if bench.tiny else layers,
                         tie_word_embeddings=tied, vocab_size=512 if bench.tiny else 128_256, dtype="bfloat16",
                         max_position_embeddings=8192, bos_token_id=None, eos_token_id=1, pad_token_id=0)  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in LlamaForCausalLM(config).state_dict().items()}
    files: dict[str, list[str]] = {}
    for name in shapes:
        if not (tied and name == "lm_head.weight"):
            layer = re.search(r"layers\.(\d+)\.", name)
            files.setdefault(f"layer-{layer[1]}.safetensors" if layer else "rest.safetensors", []).append(name)
    smaller = bench.model(shared) if shared else None
    folder.mkdir(parents=True, exist_ok=True)

    def write(file: str) -> None:
        if smaller and (smaller / file).exists():
            (folder / file).symlink_to((smaller / file).resolve())
            return
        generator = torch.Generator().manual_seed(sum(map(ord, file)))
        block = torch.empty(2**24, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)  # over and over: fast
        tensors = {}
        for name in files[file]:
            size = shapes[name].numel()
            drawn = block.repeat(-(-size // block.numel()))[:size].reshape(shapes[name]).contiguous()
            tensors[name] = torch.ones_like(drawn) if "norm" in name else drawn
        save_file(tensors, folder / file, metadata={"format": "pt"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, files))
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    of_bytes = ModelConfig(name="tiny-random", source="random")
    models.load_tokenizer(of_bytes, models.locate(of_bytes, bench.work / "cache")).save_pretrained(folder)
    config.save_pretrained(folder)  # last: the folder is whole


def write_task(file: Path) -> Path:
    """600 questions and answers as long, in bytes, as GSM8K's are in tokens (here a byte is a token)."""
    import numpy

    if not file.exists():
        rng = numpy.random.default_rng(0)
        lengths = zip(rng.lognormal(3.95, 0.38, 600), rng.lognormal(4.48, 0.49, 600), strict=True)
        letters = list("abcdefghijklmnopqrstuvwxyz 0123456789 ")
        texts = [["".join(rng.choice(letters, min(450, max(10, round(n))))) for n in pair] for pair in lengths]
        file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in texts))
    return file


def planned_gib(config: Any, longest: int, result: dict[str, Any]) -> float:
    """The planner's peak for the run's longest example and its share of labelled tokens."""
    from bench.planner.advice import Machine, predict
    from bench.planner.time import PlanConfig

    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_length=longest))
    options = PlanConfig(supervised_share=result["supervised_tokens"] / result["tokens"])
    return predict(config, options, Machine(result["environment"]["device"].split(":")[0], None)).total / GIB


# --- the checks ---


def cudnn_plans(bench: Bench) -> None:
    """C1: does attention by cuDNN make a plan for every new length, and what does that cost?"""
    import torch

    from bench.worker import data, loss

    drawn = torch.randint(90, 420, (60,), generator=torch.Generator().manual_seed(0))
    lengths = sorted({int(x) for x in drawn})[: 3 if bench.tiny else 40]
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        model = bench.load("8b-8-layers", "lora").train()
        del model.model.layers[4:]
        model.gradient_checkpointing_enable({"use_reentrant": False})
        head = loss.SupervisedHead(model)
        seconds: dict[str, list[float]] = {"new": [], "seen": []}
        for visit, length in [("new", lengths[0] - 1), *(("new", n) for n in lengths), *(("seen", n) for n in lengths)]:
            rows = [{"prompt_ids": [5] * 40, "answer_ids": [6] * (length - 40 - i)} for i in range(8)]
            batch = {name: tensor.to(bench.device) for name, tensor in data.collate(rows, 0).items()}
            with timed(seconds[visit]):
                head.token_losses(model, batch)[0].sum().backward()
        name = "with cuDNN attention" if cudnn else "without cuDNN attention"
        bench.note(
            f"forward and backward, 4 layers, {name}", new_ms=ms(seconds["new"][1:]), seen_ms=ms(seconds["seen"])
        )
        del model, head
        free_memory()
        model, spans = bench.load("8b-8-layers", "lora"), list[float]()
        del model.model.layers[4:]
        model.config.num_hidden_layers = len(model.model.layers)
        ids, count = torch.randint(5, 200, (4 if bench.tiny else 64, 100)), 8 if bench.tiny else 200
        for _ in range(2):
            decode(model, ids, count, spans)
        bench.note(f"decoding, 4 layers, {name}", first_and_second_ms_per_step=[1e3 * span / count for span in spans])
        del model
        free_memory()

    if bench.device == "cpu":
        device_only("cuDNN is its own; the same kernels ran twice")


def recompilations(bench: Bench) -> None:
    """L1: does the compiler work inside timed steps? Thirty steps of full fine-tuning, 1B, of many lengths."""
    bench.train("full 1B", "1b", "full")


def thirty_steps(bench: Bench) -> None:
    """Thirty steps of LoRA and QLoRA, 8B (full 1B: check 3)."""
    for method in ("lora", "qlora"):
        bench.train(f"{method} 8B", "8b", method)


def memory_by_phase(bench: Bench) -> None:
    """Allocated, reserved and NVML's bytes by phase, of the runs that were made."""
    for file in sorted((bench.work / "results").glob("*/*/train.json")):
        result, plan = json.loads(file.read_text()), json.loads((file.parent / "plan.json").read_text())
        name = (
            f"{plan['method']['name']} {Path(plan['model']['location']).name} {result['environment']['compiled'][:8]}"
        )
        for phase in result["memory"]:
            keys = {"allocated": "peak_bytes", "reserved": "peak_reserved_bytes", "nvml": "device_used_bytes"}
            sizes = {f"{short}_gib": phase[key] and phase[key] / GIB for short, key in keys.items()}
            bench.note(f"{name}: {phase['phase']}", **sizes)


def compiled_qlora(bench: Bench) -> None:
    """QLoRA compiled against eager: equal losses, no 16-bit weight kept, the peak as planned (8 of 32 layers)."""
    losses = []
    for how in ("off", "regional") if bench.device == "cuda" else ("off",):
        result = bench.train(f"QLoRA, 8 layers, compile={how}", "8b-8-layers", "qlora", f"train.compile={how}",
                             "train.max_steps=8")  # fmt: skip
        losses.append([step["loss"] for step in result.get("per_step", [])])
    if bench.device == "cpu":
        device_only("compiled steps are compared on one; eager ones ran")
    gaps = [abs(a - b) for a, b in zip(losses[0], losses[-1], strict=False)]
    bench.note("compiled against eager", largest_loss_gap=max(gaps, default=None), steps=len(gaps))


def decoding(bench: Bench) -> None:
    """Milliseconds a decoding step by form and batch (8 of 32 layers)."""
    import torch

    count = 4 if bench.tiny else 32
    for method, adapter in (("lora", False), ("lora", True), ("qlora", False), ("qlora", True)):
        model = bench.load("8b-8-layers", method, adapter)
        for size in (1, 16, 64):
            ids, spans = torch.randint(5, 200, (size, 128)), list[float]()
            decode(model, ids, 2, [])
            decode(model, ids, count, spans)
            form = f"base in {'4' if method == 'qlora' else '16'} bit{', adapter beside' if adapter else ''}"
            bench.note(f"decoding, {form}, batch {size}", ms_per_step=1e3 * spans[0] / count)
        del model
        free_memory()


def peak_and_energy(bench: Bench) -> None:
    """The matmul peak by size, and NVML's energy counter against nvidia-smi's power."""
    import torch

    from bench.worker.instruments.energy import open_energy
    from bench.worker.instruments.tokens import matmul_peak_flops_per_second

    measured = matmul_peak_flops_per_second(bench.device, torch.bfloat16, synchronize)
    bench.note("matmul peak, as the harness measures it", tflops=measured / 1e12)
    for size in (256,) if bench.tiny else (4096, 8192, 16384):
        left, right = (torch.randn(size, size, device=bench.device).bfloat16() for _ in range(2))
        left @ right
        spans: list[float] = []
        with timed(spans):
            for _ in range(20):
                left @ right
        bench.note(f"matmul of {size}, twenty in a row", tflops=40 * size**3 / spans[0] / 1e12)
    if bench.device == "cpu":
        device_only("the energy counter is its own; products ran")
    power = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--loop-ms=200"]
    with subprocess.Popen(power, stdout=subprocess.PIPE, text=True) as sampler:
        energy, started = open_energy("cuda"), time.perf_counter()
        energy.enter("products")
        while time.perf_counter() - started < 5:
            left @ right
            synchronize()
        watt_hours, seconds = energy.read()["products"], time.perf_counter() - started
        sampler.terminate()
        watts = [float(line) for line in (sampler.communicate()[0]).split()]
    by_counter = watt_hours * 3600 / seconds if watt_hours is not None else None
    bench.note("power while multiplying", counter_watts=by_counter, nvidia_smi_watts=statistics.fmean(watts[2:]))


def checkpointing(bench: Bench) -> None:
    """LoRA with and without gradient checkpointing (8 of 32 layers)."""
    for how in ("true", "false"):
        bench.train(f"LoRA, 8 layers, checkpointing {how}", "8b-8-layers", "lora",
                    f"train.gradient_checkpointing={how}", "train.max_steps=8")  # fmt: skip


def out_of_memory(bench: Bench) -> None:
    """A run that runs out of memory says so, in training and while quantizing; the next one starts clean."""
    import torch

    if bench.device == "cpu":
        device_only("its allocator is what is capped")
    all_gib = torch.cuda.get_device_properties(0).total_memory / GIB
    for method, allowed_gib in (("full", 30.0), ("qlora", 2.0), ("lora", all_gib)):
        os.environ["PYTORCH_ALLOC_CONF"] = f"per_process_memory_fraction:{allowed_gib / all_gib:.4f}"
        settings = ("train.max_steps=2", "train.untimed_steps=1", "train.compile=off")
        bench.train(f"{method}, 8 layers, in {allowed_gib:.0f} GiB", "8b-8-layers", method, *settings)


def suite_scorer(bench: Bench) -> None:
    """The prefix scorer against lm-eval's own: numbers and seconds."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from bench.config import ModelConfig
    from bench.worker import models, scoring
    from bench.worker.suites.quick import quick_tasks

    model, folder = bench.load("1b", "lora"), str(bench.model("1b"))
    tokenizer = models.load_tokenizer(ModelConfig(name="1b", source="folder", location=folder), folder)
    tasks = [task for task in quick_tasks() if task.kind == "choice"]
    asked = [(d["context"], choice) for t in tasks for d in t.documents[:24] for choice in d["choices"]]
    asked = asked[:40] if bench.tiny else asked
    answers: dict[str, list[float]] = {}
    for kind in (HFLM, scoring.PrefixScorer, HFLM, scoring.PrefixScorer):  # the second time of each is warm
        lm = kind(pretrained=model, tokenizer=tokenizer, mixed_precision_dtype=torch.bfloat16, batch_size=16,
                  max_length=1024, softmax_dtype="float32")  # fmt: skip
        requests = [(pair, lm.tok_encode(pair[0]) or [1], lm.tok_encode(pair[1])) for pair in asked]
        spans: list[float] = []
        with timed(spans), torch.no_grad():
            answers[kind.__name__] = [nats for nats, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]
        bench.note(f"{len(requests)} log-likelihoods by {kind.__name__}", seconds=spans[0])
    gaps = [abs(a - b) for a, b in zip(*answers.values(), strict=True)]
    bench.note("the two scorers", largest_gap_nats=max(gaps), mean_gap_nats=statistics.fmean(gaps))


CHECKS: dict[int, tuple[str, int, Callable[[Bench], None]]] = {  # number: title, most seconds, code; best first
    2: ("cuDNN attention plans (C1)", 100, cudnn_plans),
    3: ("recompilations in timed steps (L1), full 1B", 170, recompilations),
    1: ("thirty steps of LoRA and QLoRA, 8B", 280, thirty_steps),
    7: ("memory by phase", 15, memory_by_phase),
    4: ("QLoRA compiled against eager", 150, compiled_qlora),
    8: ("decoding by form and batch", 70, decoding),
    10: ("matmul peak and energy", 40, peak_and_energy),
    5: ("checkpointing on and off", 170, checkpointing),
    6: ("out of memory", 110, out_of_memory),
    9: ("the suite's scorer", 90, suite_scorer),
}


# --- small help for the checks ---


def device_only(why: str) -> NoReturn:
    """End a check that cannot say more on a CPU; the reason stands in the summary."""
    print(f"Needs a GPU: {why}.", flush=True)
    sys.exit(DEVICE_ONLY)


def decode(model: Any, ids: Any, count: int, spans: list[float]) -> None:
    """Greedy answers of exactly `count` tokens; every other prompt is padded on the left by its half."""
    import torch
    from transformers import GenerationConfig

    mask = torch.ones_like(ids)
    mask[1::2, : ids.shape[1] // 2] = 0
    how = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=1)
    with timed(spans), torch.no_grad():
        model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=how)


def figures_of(result: dict[str, Any]) -> dict[str, Any]:
    """Speed, memory and times of a training run."""
    peak = next(phase for phase in result["memory"] if phase["phase"] == "train")
    keys = ("train_tokens_per_second", "mfu", "step_seconds_median", "compile_seconds", "energy_wh")
    bytes_of = {"allocated": peak["peak_bytes"], "reserved": peak["peak_reserved_bytes"],
                "nvml": peak["device_used_bytes"], "weights": result["breakdown"]["weights_bytes"]}  # fmt: skip
    return {
        **{key: result[key] for key in keys},
        **{f"{name}_gib": size and size / GIB for name, size in bytes_of.items()},
        "first_and_last_loss": [result["per_step"][i]["loss"] for i in (0, -1)],
        "step_seconds": [round(step["seconds"], 3) for step in result["per_step"]],
        "spans_seconds": result["spans_seconds"],
        "compiled": result["environment"]["compiled"],
    }


def compiler_figures(log: str, result: dict[str, Any]) -> dict[str, Any]:
    """What TORCH_LOGS=recompiles said, and the steps after warm-up in which the compiler worked."""
    reasons = re.findall(r"- \d+/\d+: [^\n]{0,120}", log)
    late = [step["step"] for step in result["per_step"][3:] if not step["timed"]]
    return {"recompilations": log.count("Recompiling function"), "late_compilations": late,
            "beyond_limit": "recompile_limit" in log, "reasons": list(dict.fromkeys(reasons))[:8]}  # fmt: skip


def ms(seconds: list[float]) -> dict[str, float]:
    """Median and largest, in milliseconds."""
    return {"median": 1e3 * statistics.median(seconds), "max": 1e3 * max(seconds)}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def timed(spans: list[float]) -> Iterator[None]:
    """Append the block's wall seconds, the device synchronized at both edges."""
    synchronize()
    started = time.perf_counter()
    yield
    synchronize()
    spans.append(time.perf_counter() - started)


def free_memory() -> None:
    """Give back what a deleted model held."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


# --- running them ---


def run_check(number: int, out: Path, tiny: bool, seconds: float) -> dict[str, Any]:
    """One check in a process group of its own, killed at its limit; what it noted until then is kept."""
    rows, log = out / f"rows-{number:02}.json", out / f"check-{number:02}.log"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", str(number), "--out", str(out)]
    environment = os.environ | {"TORCH_LOGS": "recompiles"} | ({} if number == 2 else {CUDNN: "1"})
    started = time.monotonic()
    with log.open("wb") as file:
        child = subprocess.Popen([*command, *(["--tiny"] if tiny else [])], stdout=file, stderr=subprocess.STDOUT,
                                 start_new_session=True, env=environment)  # fmt: skip
        try:
            ended = {0: "ok", DEVICE_ONLY: "device only"}.get(child.wait(seconds), "error")
        except subprocess.TimeoutExpired:
            ended = f"stopped at {seconds:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # the worker dies with its parent
        child.wait()
    result = {"check": number, "title": CHECKS[number][0], "ended": ended, "seconds": time.monotonic() - started,
              "rows": json.loads(rows.read_text()) if rows.exists() else []}  # fmt: skip
    if ended != "ok":
        result["tail"] = log.read_text(errors="replace")[-1500:]
    return result


def summary(results: list[dict[str, Any]]) -> str:
    """All rows as Markdown, under the machine that gave them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        gpu = "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    shapes = "; toy shapes" if "--tiny" in sys.argv else ""
    lines = [
        f"# GPU checks: {gpu}; {versions}{shapes}",
        "",
        "`python -m benchmarks.gpu " + " ".join(sys.argv[1:]) + "`",
        "",
    ]
    for result in results:
        lines += [f"## {result['check']}. {result['title']}: {result['ended']}, {result['seconds']:.0f} s", ""]
        for row in result["rows"]:
            lines.append(f"- {row.pop('what')}: " + ", ".join(f"{k} {json.dumps(v)}" for k, v in row.items()))
        lines += ["", "```", result["tail"], "```", ""] if "tail" in result else [""]
    return re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4g}", "\n".join(lines))


def main() -> int:
    """Run the checks, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; models go to OUT/work")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tiny", action="store_true", help="toy shapes, on a CPU too")
    parser.add_argument("--checks", default=",".join(map(str, CHECKS)), help="numbers with commas; default: all ten")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = options.out.absolute()
    (out / "work").mkdir(parents=True, exist_ok=True)
    if options.only:
        CHECKS[options.only][2](Bench(out, options.tiny, options.only))
        return 0
    ends, results = time.monotonic() + 60 * options.minutes, []
    for number in (number for number in CHECKS if str(number) in options.checks.split(",")):
        title, most = CHECKS[number][:2]
        left = ends - time.monotonic()
        result = {"check": number, "title": title, "ended": "not run: no time was left", "seconds": 0.0, "rows": []}
        if left > 5:
            result = run_check(number, out, options.tiny, min(left, most * (5 if options.tiny else 1)))
        (out / f"check-{number:02}.json").write_text(json.dumps(result, indent=1))
        results.append(result)
        print(f"{number:>2} {title}: {result['ended']}, {result['seconds']:.0f} s", flush=True)
        (out / "summary.md").write_text(summary([json.loads(json.dumps(result)) for result in results]))
    return 0 if all(result["ended"] in ("ok", "device only") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
