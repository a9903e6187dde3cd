"""Was a run measured while the machine was busy? Its speed is then no property of the method; its quality still is.

>>> disturbances(record)
{'train': 'other processes used 0.84 of its 2 processors'}
"""

from __future__ import annotations

from bench.spec.record import Environment, Record

# Above this the speed is in doubt. What others use is missing to the run, at worst in full. 5% of the processors is
# the size of differences between methods that people ask about, so nothing of that size may come from others; below a
# tenth of a processor lie the odd wakings of any system. `python -m benchmarks.busy` shows what a share costs here.
BUSY_SHARE, BUSY_CORES = 0.05, 0.1


def busy(environment: Environment) -> str | None:
    """What disturbed a stage, as a clause; None when it was alone, or nothing is known."""
    processors = environment.cpus or environment.threads or 1
    limit = max(BUSY_CORES, BUSY_SHARE * processors)
    others, stolen = environment.other_cpu_cores or 0.0, environment.stolen_cpu_cores or 0.0
    clauses = []
    if others + stolen > limit:
        if others:
            clauses.append(f"other processes used {others:.2f} of its {processors} processors")
        if stolen:
            clauses.append(f"the hypervisor took {stolen:.2f} processors away")
    if environment.other_gpu_processes:
        clauses.append(f"{environment.other_gpu_processes} other process(es) computed on the GPU")
    return " and ".join(clauses) or None


def disturbances(record: Record) -> dict[str, str]:
    """Stage -> what disturbed it, of the stages that were disturbed."""
    stages = {"train": record.train, "evaluate": record.evaluate, "regression": record.regression}
    return {name: text for name, stage in stages.items() if stage and (text := busy(stage.environment))}


def speed_doubts(left: Record, right: Record) -> list[str]:
    """Why the training speeds of two runs should not be set against each other, each a sentence's worth.

    Beyond `fairness.reasons_against`: these leave a comparison of quality as good as it is.
    """
    doubts = []
    for record in (left, right):
        if text := disturbances(record).get("train"):
            doubts.append(f"{record.run_id} was measured on a busy machine: {text}")
    governors = [record.train.environment.cpu_governor if record.train else None for record in (left, right)]
    if None not in governors and governors[0] != governors[1]:
        doubts.append(f"their processors were governed differently ({governors[0]} and {governors[1]})")
    return doubts
