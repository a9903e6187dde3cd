"""Was a run measured while the machine was busy? Its speed is then no property of the method; its quality still is.

>>> disturbances(record)
{'train': 'other processes used 0.84 of its 2 processors'}
"""

from __future__ import annotations

from bench.record import Environment, Record

# Above this the speed is in doubt. The threads of a CPU run wait for one another: 0.13 processors taken by others cost
# matrix products 9%, whatever the number of processors; an idle machine read up to 0.06 (`python -m benchmarks.busy`,
# docs/fairness.md). A GPU run needs few of its processors, so that others may take 5% of them.
BUSY_CORES, BUSY_SHARE_BESIDE_GPU = 0.1, 0.05


def busy(environment: Environment) -> str | None:
    """What disturbed a stage, as a clause; None when it was alone, or nothing is known."""
    processors = environment.cpus or environment.threads or 1
    on_cpu = environment.device.startswith("cpu")
    limit = BUSY_CORES if on_cpu else max(BUSY_CORES, BUSY_SHARE_BESIDE_GPU * processors)
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
    found = {name: [stage.environment] for name, stage in stages.items() if stage}
    if record.serve:
        found["serve"] = [record.serve.environment, *record.serve.later_environments]
    clauses = {name: [text for one in environments if (text := busy(one))] for name, environments in found.items()}
    return {name: texts[0] for name, texts in clauses.items() if texts}


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
