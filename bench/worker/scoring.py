"""Log-likelihoods for lm-eval with each shared prefix computed once and logits only where they are asked for.

The choices of a multiple-choice item share their question, the sentences of a minimal pair most of their words.
lm-eval runs every choice alone and computes the whole vocabulary at every position. Here the choices of one item are
branches of one row: prefix, then the branches one after the other, each seeing the prefix and itself (a mask), at the
positions they would have alone. The numbers are those of lm-eval up to rounding (tests/worker/test_regression.py).
Batches hold positions, not rows (`data.batches`): sentences come by the hundred, pages a few at a time.

    row        The capital of France is | Paris | Rome
    positions   0    1     2    3    4      5      5
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from bench.worker.data import batches
from bench.worker.loss import SupervisedHead, alike

Request = tuple[Any, list[int], list[int]]  # lm-eval's: (text or None, context tokens, continuation tokens)
_ROWS_AT_ONCE = 512  # positions whose logits are in fp32 at one time: 100 MB with 50,000 words
_PADDING = 0.15  # of a batch of scored rows at most: they are not decoded, so that more batches cost little
_ASKED = 4  # positions that one whose logits are kept takes the memory of, when batches are made


@dataclass(frozen=True)
class Branched:
    """Sequences with a common prefix, as one row.

    Attributes:
        sequences: context and continuation of each member, cut on the left to what the model takes.
        asked: how many last tokens of each are the continuation.
        shared: length of the common prefix.
    """

    members: list[int]  # places in the list of requests
    sequences: list[list[int]]
    asked: list[int]
    shared: int

    @property
    def kept(self) -> int:
        """Positions that the row counts for in a batch beside its tokens: those of its logits."""
        return (_ASKED - 1) * sum(self.asked)

    @property
    def length(self) -> int:
        """Tokens of the row; the last token of a sequence is predicted and never read."""
        return self.shared + sum(len(s) - 1 - self.shared for s in self.sequences)

    def starts(self) -> list[int]:
        """The place in the row at which each branch begins."""
        starts = [self.shared]
        for sequence in self.sequences[:-1]:
            starts.append(starts[-1] + len(sequence) - 1 - self.shared)
        return starts


class PrefixScorer(HFLM):
    """lm-eval's model over a loaded Hugging Face one, with `_loglikelihood_tokens` replaced where it may be.

    The mask of a row takes the place of the model's own, so a local window is not seen: sequences beyond it are
    scored lm-eval's way, and everything is where the model has no place for such a mask (`takes_branches`).
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._rows, self.batch_size_per_gpu = self.batch_size, sys.maxsize  # all requests come to us at once
        self._head = SupervisedHead(self.model)
        self._exact_to = local_window(self.model) if takes_branches(self.model) else 0  # tokens of a sequence
        self.advance: Callable[..., None] = lambda done, total: None  # is told how many requests are scored

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding would write it) of each continuation."""
        lengths = [min(len(context) + len(asked) - 1, self.max_length) for _, context, asked in requests]
        beyond = [place for place, length in enumerate(lengths) if length > self._exact_to]
        within = [place for place, length in enumerate(lengths) if length <= self._exact_to]
        alone = self._by_lm_eval(super()._loglikelihood_tokens, requests, {place: lengths[place] for place in beyond})
        answers, rows = dict(alone), branched([requests[place] for place in within], self.max_length)
        for batch in batches([row.length for row in rows], self._rows, [row.kept for row in rows], _PADDING):
            answers |= {within[member]: answer for member, answer in self._score([rows[place] for place in batch])}
            self.advance(len(answers), total=len(requests))
        return [answers[place] for place in range(len(requests))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's, a batch of prompts with their longest answers at a time; those of one kind together."""
        kinds: dict[str, dict[int, int]] = {}
        for place, (prompt, asked) in enumerate(request.args for request in requests):
            length = len(self.tok_encode(prompt)) + normalize_gen_kwargs(asked, self.max_gen_toks)["max_gen_toks"]
            kinds.setdefault(repr(asked), {})[place] = min(length, self.max_length)
        answers: dict[int, str] = {}
        for lengths in kinds.values():
            for place, answer in self._by_lm_eval(super().generate_until, requests, lengths):
                answers[place] = answer
                self.advance(len(answers), total=len(requests))
        return [answers[place] for place in range(len(requests))]

    def _by_lm_eval(
        self, function: Callable[..., list[Any]], requests: Sequence[Any], lengths: Mapping[int, int]
    ) -> Iterator[tuple[int, Any]]:
        """(place of a request, what lm-eval's own function gives for it), of those whose lengths are given."""
        places = list(lengths)
        for batch in batches(list(lengths.values()), self._rows):
            chosen = [places[i] for i in batch]
            self.batch_size_per_gpu = len(chosen)
            yield from zip(chosen, function([requests[place] for place in chosen], disable_tqdm=True), strict=True)
        self.batch_size_per_gpu = sys.maxsize

    def _score(self, rows: Sequence[Branched]) -> Iterator[tuple[int, tuple[float, bool]]]:
        inputs, places = _tensors(rows)
        keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for row, positions, _ in places.values():
            keep[row, positions] = True
        on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        dtype = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            logits = self._head.logits(self.model, keep.to(self.device), **on_device)  # (kept, vocabulary)
        kept_before = keep.flatten().cumsum(0).reshape(keep.shape) - 1
        for member, (row, positions, targets) in places.items():
            chosen = logits[kept_before[row, positions].to(logits.device)]
            yield member, _answer(chosen, torch.tensor(targets, device=logits.device))


class Counter(PrefixScorer):
    """Counts what a suite takes and computes nothing: every answer is empty, every likelihood 1."""

    positions, written = 0, 0  # tokens to score, shared prefixes once; tokens that answers may have at most

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        self.positions += sum(row.length for row in branched(requests, self.max_length))
        return [(0.0, False)] * len(requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.written += sum(normalize_gen_kwargs(r.args[1], self.max_gen_toks)["max_gen_toks"] for r in requests)
        return [""] * len(requests)


def local_window(model: Any) -> int:
    """The longest sequence of which every layer sees all, in tokens."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min([limit for limit in limits if limit], default=sys.maxsize)


def takes_branches(model: Any) -> bool:
    """Whether a branch of a row is predicted as alone, tried on a short one: not with ALiBi or states, for example.

    Alone means behind padding: without a mask, attention has another kernel, whose rounding moves the logits of a deep
    model in 16 bit by more than a wrong branch moves those of a small one.
    """
    shared, branch = [3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9]
    row = Branched([0, 1], [[*shared, *branch[::-1], 0], [*shared, *branch, 0]], [1, 1], len(shared))
    padding, alone = [0] * len(branch), [*shared, *branch]
    padded = {
        "input_ids": torch.tensor([[*padding, *alone]]),
        "attention_mask": torch.tensor([[*padding, *[1] * len(alone)]]),
        "position_ids": torch.tensor([[*padding, *range(len(alone))]]),
    }
    try:
        with torch.no_grad():
            expected, found = (
                model(**{name: tensor.to(model.device) for name, tensor in some.items()}, use_cache=False).logits
                for some in (padded, _tensors([row])[0])
            )
    except (TypeError, ValueError, RuntimeError, IndexError):  # no such argument, or another shape is expected
        return False
    return alike(found[0, -len(branch) :], expected[0, -len(branch) :])


def branched(requests: Sequence[Request], max_length: int) -> list[Branched]:
    """Requests grouped in their order while half of every member is shared."""
    groups: list[Branched] = []
    for place, (_, context, continuation) in enumerate(requests):
        sequence = (context + continuation)[-(max_length + 1) :]
        alone = Branched([place], [sequence], [len(continuation)], len(sequence) - 1)
        joined = _join(groups[-1], alone) if groups else None
        if joined is None or joined.length > max_length:
            groups.append(alone)
        else:
            groups[-1] = joined
    return groups


def _join(group: Branched, alone: Branched) -> Branched | None:
    """Both in one row; None when too little is shared."""
    (sequence,) = alone.sequences
    limit = min(group.shared, len(sequence) - 1)
    first = group.sequences[0]
    shared = next((i for i in range(limit) if first[i] != sequence[i]), limit)
    longest = max(len(s) for s in [*group.sequences, sequence])
    if 2 * shared < longest:
        return None
    return Branched(group.members + alone.members, group.sequences + alone.sequences, group.asked + alone.asked, shared)


def _tensors(rows: Sequence[Branched]) -> tuple[dict[str, torch.Tensor], dict[int, tuple[int, list[int], list[int]]]]:
    """(the model's inputs, member -> (row, positions that predict its continuation, the continuation))."""
    length = max(row.length for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    seen = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no empty softmax
    places = {}
    for r, row in enumerate(rows):
        shared = row.shared
        ids[r, :shared] = torch.tensor(row.sequences[0][:shared])
        positions[r, :shared] = torch.arange(shared)
        seen[r, :shared, :shared] = torch.ones(shared, shared, dtype=torch.bool).tril()
        for member, sequence, asked, start in zip(row.members, row.sequences, row.asked, row.starts(), strict=True):
            own = len(sequence) - 1 - shared
            end = start + own
            ids[r, start:end] = torch.tensor(sequence[shared:-1])
            positions[r, start:end] = torch.arange(shared, shared + own)
            seen[r, start:end, :shared] = True
            seen[r, start:end, start:end] = torch.ones(own, own, dtype=torch.bool).tril()
            before = range(len(sequence) - 1 - asked, len(sequence) - 1)
            places[member] = (r, [t if t < shared else start + t - shared for t in before], sequence[-asked:])
    return {"input_ids": ids, "position_ids": positions, "attention_mask": seen.unsqueeze(1)}, places


def _answer(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, bool]:
    """The continuation's log-likelihood and whether each of its tokens is the likeliest; logits (asked, vocabulary)."""
    nats, greedy = 0.0, True
    for some, expected in zip(logits.split(_ROWS_AT_ONCE), targets.split(_ROWS_AT_ONCE), strict=True):
        rows = some.float()
        nats += float((rows.gather(1, expected[:, None])[:, 0] - rows.logsumexp(1)).double().sum())
        greedy &= bool((rows.argmax(1) == expected).all())
    return nats, greedy
