"""The weights stage: what training did to each matrix, by the singular values and vectors of its change.

The change of a plain adapter is s B A, and its singular values follow from the two small factors; any other change is
the tuned matrix, as it was saved, less the base's in 16 bit. Matrices whose smaller side is at most `EXACT` are
decomposed exactly; of larger ones randomized SVD (Halko, Martinsson and Tropp 2011) finds the `SKETCH` leading singular
values and vectors, and stands for all of the base's. Output heads and embeddings are left out.

Intruder dimensions (Shuttleworth et al., arXiv 2410.21228): of the `intruder_vectors` leading left singular vectors of
the tuned matrix, those whose largest cosine with all of the base's is below `intruder_threshold`.

    >>> run(context).matrices
    210
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load_file

from bench.config import RunConfig
from bench.record import MatrixChange, WeightsResult
from bench.worker import device, methods, models
from bench.worker.instruments.tokens import matrices
from bench.worker.main import Context, write_lines

EXACT, SKETCH, PASSES = 4096, 256, 4
ENERGY = 0.9
_MOVE_THE_BASE = ("pissa", "olora")  # starts of an adapter that change the base's weights too


@dataclass(frozen=True)
class Change:
    """What training added to a matrix (rows, columns): itself, or two factors (rows, r) and (r, columns)."""

    left: torch.Tensor
    right: torch.Tensor | None = None

    def added_to(self, base: torch.Tensor) -> torch.Tensor:
        return base + self.left if self.right is None else torch.addmm(base, self.left, self.right)

    def singular_values(self) -> torch.Tensor:
        """Descending: all that are not 0, or the leading ones of a large matrix."""
        if self.right is None:
            large = min(self.left.shape) > EXACT
            return sketched(self.left)[1] if large else torch.linalg.svdvals(self.left)
        small = torch.linalg.qr(self.left)[1] @ torch.linalg.qr(self.right.T)[1].T  # the rest is orthogonal
        return torch.linalg.svdvals(small)


def run(context: Context) -> WeightsResult:
    """Measure every matrix that was trained."""
    config, asked = context.config, context.config.evaluation
    resolved = device.resolve(config)
    memory = context.measure_on(resolved)
    memory.enter("weights")
    context.progress.phase("load")
    with context.clock.span("load"):
        source = models.locate(config.model, context.cache)
        model = models.load_weights(config.model, source, dtype=resolved.compute_dtype, device_map={"": "cpu"})
        base = _by_name(model)
        tuned = load_file(context.weights / "adapter_model.safetensors") if _in_factors(config) else _whole(context)
    context.load.start()
    context.progress.phase("weights", len(base))
    rows = []
    with context.clock.span("weights"), torch.no_grad():
        for name, change in _changes(config, base, tuned, resolved.type):
            matrix = base[name].to(resolved.type).float()
            rows.append(measure(name, matrix, change, asked.intruder_vectors, asked.intruder_threshold))
            context.progress.advance(len(rows))
    write_lines(context.folder / "weight_changes.jsonl.gz", map(asdict, rows))
    return WeightsResult(
        matrices=len(rows),
        memory=list(memory.read().values()),
        spans_seconds=context.clock.read(),
        environment=resolved.environment(context.load.read()),
    )


def _by_name(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {name: weight for name, module, weight in matrices(model) if module is not head and weight.ndim == 2}


def _in_factors(config: RunConfig) -> bool:
    """Whether the adapter's factors are the whole change."""
    adapter = config.method.adapter
    return adapter is not None and not adapter.use_dora and adapter.init not in _MOVE_THE_BASE


def _whole(context: Context) -> dict[str, torch.Tensor]:
    """The tuned matrices by name, an adapter merged in fp32."""
    config = context.config
    source = models.locate(config.model, context.cache)
    model = methods.load_trained(config, source, context.weights, "cpu", torch.float32)
    return _by_name(model if config.method.adapter is None else model.merge_and_unload())


def _changes(
    config: RunConfig, base: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], kind: str
) -> Iterator[tuple[str, Change]]:
    """(name, change on the device) of the matrices that were trained, in the model's order."""
    adapter = config.method.adapter
    for name, matrix in base.items():
        if adapter is None or not _in_factors(config):
            change = tuned[name].to(kind).float() - matrix.to(kind).float()
            if adapter is None or bool(change.any()):  # others are no target of the adapter
                yield name, Change(change)
        elif (key := f"base_model.model.{name}.lora_A.weight") in tuned:
            a, b = (tuned[k].to(kind).float() for k in (key, key.replace("lora_A", "lora_B")))
            scale = adapter.alpha / (math.sqrt(adapter.rank) if adapter.use_rslora else adapter.rank)
            factors = (scale * b, a) if b.shape[0] == matrix.shape[0] else (scale * a.T, b.T)  # GPT-2's Conv1D
            yield name, Change(*factors)


def measure(name: str, base: torch.Tensor, change: Change, vectors: int, threshold: float) -> MatrixChange:
    """One matrix and its change, both in fp32 on one device."""
    values = change.singular_values()
    exact = change.right is not None or min(base.shape) <= EXACT
    total = float(values.square().sum() if exact else change.left.square().sum())
    held = values.square().cumsum(0)
    places = int((held < ENERGY * total).sum()) + 1
    shares = values / values.sum()
    layers = [int(part) for part in name.split(".") if part.isdigit()]
    return MatrixChange(
        name=name,
        layer=layers[0] if layers else None,
        rows=base.shape[0],
        columns=base.shape[1],
        relative_norm=math.sqrt(total) / float(base.norm()),
        stable_rank=total / float(held[0]) if total else None,
        effective_rank=math.exp(-float(torch.special.xlogy(shares, shares).sum())) if total and exact else None,
        rank_90=places if total and places <= len(values) else None,
        intruders=intruders(base, change.added_to(base), vectors, threshold),
    )


def intruders(base: torch.Tensor, tuned: torch.Tensor, vectors: int, threshold: float) -> int:
    """How many of the leading left singular vectors of the tuned matrix are none of the base's."""
    closest = (_left(base).T @ _left(tuned)[:, :vectors]).abs().amax(dim=0)
    return int((closest < threshold).sum())


def _left(matrix: torch.Tensor) -> torch.Tensor:
    """Left singular vectors as columns, those of the largest values first."""
    if min(matrix.shape) > EXACT:
        return sketched(matrix)[0]
    return torch.linalg.svd(matrix, full_matrices=False)[0]


def sketched(matrix: torch.Tensor, count: int = SKETCH) -> tuple[torch.Tensor, torch.Tensor]:
    """(left vectors, values) of the leading singular triples; the same for the same matrix."""
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)
        left, values, _ = torch.svd_lowrank(matrix, q=min(count, *matrix.shape), niter=PASSES)
    return left, values
