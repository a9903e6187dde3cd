"""Some seconds with the base on the runs' device: how fast it loads, computes held-out losses and writes answers.

`prepare` calls it once for a model, a task and a device; what it measured is kept in the cache, where a sweep looks for
it to say how long runs will take (`planner.forecast`). Nothing compiled is measured, and nothing is trained.

>>> probe(context, source, tokenizer, resolved).answers_seconds
12.4
"""

from __future__ import annotations

import time
import traceback
from itertools import pairwise
from statistics import median
from typing import Any

import psutil
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from bench.identity import data_folder, write_atomic
from bench.planner.past import speed_path
from bench.record import Speed, to_json
from bench.worker import data, methods
from bench.worker.device import Device, name_of
from bench.worker.instruments.memory import release
from bench.worker.loss import SupervisedHead, example_losses, inference
from bench.worker.main import Context

_ROWS = 8  # of the test split, whose loss is computed
_STEPS, _FEWEST, _SECONDS = 16, 6, 3.0  # of decoding: most and fewest, and after which time it may end


def keep_speed(context: Context, source: str, tokenizer: Any, resolved: Device) -> None:
    """Probe once, where memory is plenty. A probe that fails costs a sweep its estimate, and nothing else."""
    path, config = speed_path(context.config, f"{resolved.type}: {name_of(resolved.type)}"), context.config
    weights_bytes = 4 * (config.model.parameters or 0)  # at most
    is_roomy = resolved.type != "cpu" or weights_bytes < psutil.virtual_memory().available / 2
    if path.exists() or config.hardware.memory_limit_gib is not None or not is_roomy:
        return
    context.progress.phase("probe")
    try:
        write_atomic(path, to_json(probe(context, source, tokenizer, resolved)))
    except Exception:
        traceback.print_exc()  # into the log
    release()


def probe(context: Context, source: str, tokenizer: Any, resolved: Device) -> Speed:
    """Load, the loss of some test examples (the second time), first steps of a batch of answers; count the suite."""
    config, test = context.config, list(data.load_prepared(data_folder(context.config)).test)
    started = time.perf_counter()
    model = methods.load_as_stored(config, source, resolved.type, resolved.compute_dtype).eval()
    load_seconds = context.clock.spans_seconds.get("import", 0.0) + time.perf_counter() - started
    rows, head = test[:_ROWS], SupervisedHead(model)
    with inference(model, resolved):
        seconds = 0.0
        for _ in range(2):  # the first call chooses kernels
            resolved.synchronize()
            started = time.perf_counter()
            example_losses(model, head, rows, batch_size=_ROWS, pad_id=tokenizer.pad_token_id, device=resolved)
            resolved.synchronize()
            seconds = time.perf_counter() - started
        new_tokens = config.task.max_new_tokens
        lengths = [len(row["prompt_ids"]) + new_tokens for row in test]
        batches = list(data.batches(lengths, config.hardware.generate_batch))
        prompts = [test[i]["prompt_ids"] for i in batches[len(batches) // 2]]  # neither the longest nor the rest
        answers_seconds = _answers_seconds(model, prompts, new_tokens, tokenizer.pad_token_id, resolved)
    a_position, a_token = seconds / sum(map(data.row_length, rows)), answers_seconds / (len(prompts) * new_tokens)
    if config.suite.source == "none" or config.trial:
        return Speed(load_seconds, a_position, answers_seconds, len(prompts))
    from bench.worker.regression import count_suite, window  # seconds to import

    scored, written, items = count_suite(config.suite, model, tokenizer, context.tables, window(config))
    suite_seconds = scored * a_position + written * a_token
    return Speed(load_seconds, a_position, answers_seconds, len(prompts), suite_seconds, items)


def _answers_seconds(model: Any, prompts: list[list[int]], new_tokens: int, pad_id: int, resolved: Device) -> float:
    """Of one batch of the longest answers: the first token, and the median of the next few for each other one."""
    ids = pad_sequence([torch.tensor(p) for p in prompts], batch_first=True, padding_value=pad_id, padding_side="left")
    mask = pad_sequence([torch.ones(len(p)) for p in prompts], batch_first=True, padding_side="left").long()
    started, stamps = time.perf_counter(), list[float]()

    def stop(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        resolved.synchronize()
        stamps.append(time.perf_counter() - started)
        done = len(stamps) >= _STEPS or (len(stamps) >= _FEWEST and stamps[-1] > _SECONDS)
        return torch.full((len(input_ids),), done, device=input_ids.device)

    most = min(new_tokens, _STEPS)
    how = GenerationConfig(max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=pad_id)
    model.generate(
        input_ids=ids.to(resolved.type), attention_mask=mask.to(resolved.type), generation_config=how,
        stopping_criteria=[stop],
    )  # fmt: skip
    later = [after - before for before, after in pairwise(stamps)]
    return stamps[0] + (new_tokens - 1) * (median(later) if later else 0.0)
