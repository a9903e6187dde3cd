"""The time and memory of the data check, on texts with the word frequencies of natural language.

python -m benchmarks.data_check 100000       time and memory as in docs/data.md; about two minutes on one core
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import numpy as np

from bench.worker.check import check

TEMPLATE = "Answer the question in one word please and do not explain it at all: "
VOCABULARY = 30_000


def rows(count: int) -> list[dict[str, Any]]:
    """Prompts of 114 words under one template, answers of 20."""
    rng, frequency = np.random.default_rng(0), 1 / np.arange(1, VOCABULARY + 1)
    words = np.array([f"w{rank}" for rank in range(VOCABULARY)])
    drawn = rng.choice(words, (count, 120), p=frequency / frequency.sum())
    return [
        {"example_id": str(place), "prompt": TEMPLATE + " ".join(text[:100]), "reference": " ".join(text[100:]),
         "prompt_ids": range(150), "answer_ids": [1] * 30}
        for place, text in enumerate(drawn)
    ]  # fmt: skip


def main() -> None:
    """Print what the check took."""
    made = rows(int(sys.argv[1]))
    edges = [0, int(0.9 * len(made)), int(0.95 * len(made)), len(made)]
    splits = {name: made[edges[i] : edges[i + 1]] for i, name in enumerate(("train", "validation", "test"))}
    started = time.perf_counter()
    found = check(splits, {}, None)
    seconds, peak_kib = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    near = sum(overlap.near for overlap in found.overlaps)
    print(f"{len(made):,} examples: {seconds:.0f} s, peak {peak_kib / 2**20:.1f} GiB; {near} near duplicates, "
          f"{found.contaminated} contaminated (planted: none)")  # fmt: skip


if __name__ == "__main__":
    main()
