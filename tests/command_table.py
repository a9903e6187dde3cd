"""How each command of the pages is executed: one entry a command, and nothing else in the table.

`Here` is run by test_commands.py, in small; `Elsewhere` by a test that has it as its subject; `No` by no test, with
the reason. `docs/commands.md` is this table for readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Why(StrEnum):
    """Why no test gives a command."""

    GPU = "needs a GPU"
    GPUS = "needs several GPUs; in small, on a CPU: `tests/faults/test_several.py`"
    GPU_AND_HUB = "needs a GPU and a model hub"
    HUB = "needs a model hub"
    ACCOUNT = "needs an account of a model hub"
    CLUSTER = "needs a cluster; on one machine: cluster.md, What was tried"
    DOCKER = "needs Docker and a GPU"
    INSTALLS = "installs or downloads"
    EXTRA = "needs an extra that `make setup` leaves out; by hand"
    SYSTEM = "another program's, not of this project"
    TESTS = "is the test run itself, or a part of it"
    BY_HAND = "a benchmark of minutes, by hand"
    NAME = "names a program, not a call of it"


@dataclass(frozen=True)
class Here:
    """Run by test_commands.py.

    Attributes:
        small: settings that make it small, in the place of the command's own of the same name.
        makes: files that the page promises, as patterns.
        says: words that it prints.
        runs: how many must be there in the end; the small settings leave none out.
        after: what has to be run before: commands of this table, or others, which are run with `TINY`.
    """

    small: str = ""
    makes: tuple[str, ...] = ()
    says: str = ""
    runs: int | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Elsewhere:
    """Run by another test, `file::function` below tests/, perhaps on other data or a smaller model."""

    test: str


@dataclass(frozen=True)
class No:
    """Run by no test."""

    why: Why


# Files in the folder where the commands are given; 40 rows would do, but for experiment=data_size.
DATA = (
    "task=jsonl task.train_file=train.jsonl task.test_file=test.jsonl task.prompt={question} task.target={answer} "
    "task.metrics=[numeric]"
)
BUDGET = (
    "train=smoke suite=none task.validation_examples=4 task.test_examples=4 task.max_new_tokens=4 hardware.threads=1"
)
FEW = "task.train_examples=16"
SMALL = f"{BUDGET} {DATA} {FEW}"  # of whatever model
TINY = f"model=tiny-random {SMALL}"
TINY_GRID = f"model=tiny-random {BUDGET} {DATA}"  # the command itself says how many examples
SMOKE = f"{DATA} task.max_new_tokens=4 hardware.threads=1"  # of experiment=smoke, which is small by itself
SERVED = (
    "serve.prompt_tokens=[8] serve.batch_sizes=[1] serve.new_tokens=2 serve.repetitions=1 "
    "serve.adapters=[1,2] serve.fidelity_examples=2"
)
SWEEP = "python -m bench -m method=base,full,lora,qlora seed=0,1,2"
TUNE = "make tune"
AB = ("python -m bench -m method=base,lora sweep=a", "python -m bench -m method=base,full sweep=b")
REPORT = ("results/default/report.html", "results/default/report.md", "results/default/tables/*.csv")
PLOTS = ("results/default/plots/quality.svg",)
RATES = ("results/tune/default/rates.yaml",)
FETCHED = Elsewhere("sweep/test_fetching.py::test_a_hub_model_runs_from_its_bundle_when_the_hub_is_gone")

TABLE: dict[str, Here | Elsewhere | No] = {
    # README.md
    "make sweep": Here(TINY, REPORT),
    "make test": No(Why.TESTS),
    'make sweep ARGS="model=llama-3.2-3b task=gsm8k suite=general train=gpu seed=0,1,2 sweep=llama"': No(
        Why.GPU_AND_HUB
    ),
    "python -m bench --help": Here(says="Groups (choose with group=name"),
    "python -m bench method=lora": Here(TINY, REPORT),
    SWEEP: Here(f"{TINY} seed=0", REPORT),
    "python -m bench -m method=lora method.adapter.rank=8,16,64 sweep=rank": Here(TINY),
    "python -m bench -m seed=0,1,2 hydra/launcher=slurm": No(Why.CLUSTER),
    "make fetch MODEL=llama-3.2-3b TASK=gsm8k": FETCHED,
    TUNE: Here(f"{TINY} tune.max_points=2", RATES, says="A sweep with them"),
    'make sweep ARGS="rates=results/tune/default/rates.yaml"': Here(TINY, REPORT, after=(TUNE,)),
    "python -m bench report results/default": Here("", REPORT + PLOTS, after=(SWEEP,)),
    "python -m bench report results/default export=latex,png": Here(
        "",
        ("results/default/tables/*.tex", "results/default/plots/*.png"),
        after=(SWEEP,),
    ),
    "python -m bench report results/default memory_gib=24 time_hours=2": Here(after=(SWEEP,)),
    (
        'make sweep ARGS="task=jsonl task.train_file=train.jsonl task.test_file=test.jsonl '
        'task.prompt={question} task.target={answer} task.metrics=[numeric] sweep=mine"'
    ): Here(f"model=tiny-random {BUDGET} {FEW}", ("results/mine/report.html",)),
    'make sweep ARGS="seed=0,1,2"': Here(f"{TINY} seed=0,1", REPORT),
    "hf auth login": No(Why.ACCOUNT),
    # CONTRIBUTING.md
    "make check": No(Why.TESTS),
    "pytest -m gpu": No(Why.GPU),
    "pytest -m hub": No(Why.HUB),
    ".ci/run": No(Why.TESTS),
    "python -m bench method=full_adam8bit": Here(TINY),
    "python -m bench -m method=base,lora task=gsm8k": No(Why.HUB),
    "pytest tests/worker/test_golden.py": No(Why.TESTS),
    # docs/air-gapped.md
    "make fetch MODEL=llama-3.2-3b TASK=gsm8k SUITE=general": FETCHED,
    "python -m bench fetch model=llama-3.2-3b task=gsm8k suite=general seed=0,1,2 to=/mnt/disk/bundle": FETCHED,
    "git clone bundle/bench.git bench && cd bench": No(Why.INSTALLS),
    "python3 -m venv .venv": No(Why.INSTALLS),
    ".venv/bin/pip install --no-index --find-links ../bundle/wheels -c constraints.txt -e .": No(Why.INSTALLS),
    ".venv/bin/python -m bench fetch ../bundle check=true": Elsewhere(
        "sweep/test_fetching.py::test_a_bundle_holds_wheels_and_checksums"
    ),
    (
        ".venv/bin/python -m bench -m method=base,full,lora,qlora model=llama-3.2-3b task=gsm8k suite=general "
        "paths.bundle=../bundle"
    ): FETCHED,
    "pytest -m hub tests/test_fetch.py": No(Why.HUB),
    # docs/cluster.md
    "python -m bench -m method=full,lora,qlora seed=0,1,2 hydra/launcher=slurm hydra.launcher.partition=gpu": No(
        Why.CLUSTER
    ),
    (
        "python -m bench -m method=full,lora,qlora model=llama-3.1-8b task=gsm8k train=gpu seed=0,1,2 sweep=llama "
        "hydra/launcher=slurm hydra.launcher.partition=gpu hydra.launcher.timeout_min=720"
    ): No(Why.CLUSTER),
    "python -m bench -m method=full,lora,qlora seed=0,1,2 hydra/launcher=joblib hydra.launcher.n_jobs=8": Elsewhere(
        "sweep/test_real_launchers.py::test_joblib"
    ),
    'pip install -c constraints.txt -e ".[launchers]"': No(Why.INSTALLS),
    'pip install -e ".[ray]"': No(Why.INSTALLS),
    "ray start --head": No(Why.CLUSTER),
    "ray start --address=HEAD:6379": No(Why.CLUSTER),
    # docs/definitions.md, docs/design.md, docs/fairness.md
    "python -m bench report": No(Why.NAME),
    "python -m bench.worker RUN_DIR STAGE": Elsewhere(
        "sweep/test_sweep.py::test_a_sweep_trains_every_method_on_the_same_stream"
    ),
    "python -m bench": No(Why.NAME),
    "make report": Here("", REPORT + PLOTS, after=(SWEEP,)),
    "python -m benchmarks.busy": No(Why.BY_HAND),
    # docs/devices.md
    "python -m bench method=lora hardware=gpu_pair hardware.strategy=ddp": No(Why.GPUS),
    "python -m bench method=full hardware.devices=4 hardware.strategy=fsdp": No(Why.GPUS),
    "python -m bench method=full hardware=gpu_pair hardware.cpu_offload=true": No(Why.GPUS),
    "pip install 'finetune-bench[deepspeed]'": No(Why.INSTALLS),
    "python -m bench plan": No(Why.NAME),
    # docs/experiments.md
    "python -m bench -m experiment=rank": Here(TINY, runs=8),
    "python -m bench -m experiment=targets": Here(TINY, runs=2),
    "python -m bench -m experiment=dropout": Here(TINY, runs=3),
    "python -m bench -m experiment=data_size": Here(TINY_GRID, runs=9),
    "python -m bench -m experiment=qlora_variants": Here(TINY, runs=4),
    "python -m bench -m experiment=lora_variants": Here(TINY, runs=5),
    "python -m bench -m experiment=full_variants": Here(TINY, runs=3),
    "python -m bench -m experiment=domains": Here(f"model=tiny-random {BUDGET} {FEW}", runs=8),
    "python -m bench -m experiment=controls": Here(f"{TINY} suite=quick suite.items_per_task=1", runs=3),
    "python -m bench -m experiment=equal_memory": Here(f"{TINY} train.batch_size=2", runs=3),
    "python -m bench -m experiment=smoke method=full,lora,qlora": Here(
        f"{DATA} task.max_new_tokens=4 hardware.threads=1", runs=3
    ),
    # docs/faq.md, docs/faults.md
    "python -m bench -m method=base,base_4bit": Here(TINY),
    "python -m bench report recommend": No(Why.NAME),
    "python -m bench report results/a results/b": Here("", ("results/a/report.html",), after=AB),
    "python -m pytest tests/faults": No(Why.TESTS),
    "python -m pytest tests/faults --update-faults": No(Why.TESTS),
    "pytest -m gpu tests/faults": No(Why.GPU),
    # docs/gpu.md
    "git clone URL-OF-THIS-REPOSITORY bench && cd bench": No(Why.INSTALLS),
    "make setup": No(Why.INSTALLS),
    (
        '.venv/bin/python -c "import torch; print(torch.version.cuda, torch.cuda.get_device_name(), '
        'torch.cuda.is_bf16_supported())"'
    ): No(Why.GPU),
    ".venv/bin/python -m pytest -m gpu": No(Why.GPU),
    'make sweep ARGS="experiment=smoke"': Here(SMOKE),
    ".venv/bin/hf auth login": No(Why.ACCOUNT),
    (
        'make sweep METHODS=base,lora,qlora ARGS="model=llama-3.1-8b task=gsm8k suite=general '
        'suite.items_per_task=200 train=gpu hardware=h100 seed=0,1,2 sweep=llama-8b"'
    ): No(Why.GPU_AND_HUB),
    "docker build -t finetune-bench .": No(Why.DOCKER),
    "mkdir -p results artifacts cache && sudo chown 1000 results artifacts cache": No(Why.SYSTEM),
    (
        'docker run --rm --gpus all --shm-size 8g -e HF_TOKEN -v "$PWD/results:/bench/results" '
        '-v "$PWD/artifacts:/bench/artifacts" -v "$PWD/cache:/bench/cache" finetune-bench '
        "-m method=base,lora,qlora model=llama-3.1-8b task=gsm8k train=gpu"
    ): No(Why.DOCKER),
    "nvidia-smi": No(Why.GPU),
    "nvidia-smi --query-gpu=name,compute_cap,memory.total --format=csv": No(Why.GPU),
    "sudo apt-get install python3-venv python3-dev git make g++": No(Why.INSTALLS),
    "python -m bench plan model=llama-3.1-8b method=full,lora,qlora train=gpu task=gsm8k hardware=h100": Here(
        says="does not fit, 161.8 GiB, most of it optimizer 59.8"
    ),
    "dmesg": No(Why.SYSTEM),
    # docs/numerics.md, docs/own-data.md, docs/performance.md
    "python -m benchmarks.grid RUN": No(Why.BY_HAND),
    "python -m benchmarks.numerics --methods lora --seeds 0 1 --rates 5e-4": No(Why.BY_HAND),
    'make sweep ARGS="model=folder model.location=path/to/model model.max_context=4096 model.name=mine"': Here(SMALL),
    "python -m benchmarks.steps --rounds 1 --steps 7": No(Why.BY_HAND),
    "python -m benchmarks.where": No(Why.BY_HAND),
    "python -m benchmarks.attention": No(Why.BY_HAND),
    "python -m benchmarks.peers --methods lora --steps 7 --rounds 2": No(Why.BY_HAND),
    "python -m benchmarks.observer --settings 1 2": No(Why.BY_HAND),
    "python -m benchmarks.instruments": No(Why.BY_HAND),
    (
        "python -m bench method=lora train.compile=off train.max_steps=4 train.untimed_steps=2 train.heldout_points=1 "
        "suite=none task.validation_examples=4 task.test_examples=2"
    ): Here(f"model=tiny-random train.batch_size=4 {DATA} {FEW} task.max_new_tokens=4 hardware.threads=1"),
    # docs/planner.md
    "python -m bench plan model=llama-3.1-8b method=full,lora,qlora train=gpu hardware=h100 plan.memory_gib=24,48,80": (
        Here(says="does not fit")
    ),
    (
        "python -m bench plan model=llama-3.2-1b,llama-3.2-3b,llama-3.1-8b,llama-3.1-70b method=full,lora,qlora "
        "train=gpu hardware=h100 plan.memory_gib=24,48,80"
    ): Here(says="1260.5"),
    "python -m benchmarks.planner measured": No(Why.BY_HAND),
    'MALLOC_MMAP_THRESHOLD_=262144 python -m benchmarks.planner overhead --only "42m lora 4x"': No(Why.BY_HAND),
    "python -m benchmarks.planner published": Here(says="Llama-3.1-8B full, bf16, paged 8-bit Adam"),
    # docs/recommendation.md, docs/report.md, docs/resume.md
    ("python -m bench report results/default memory_gib=24 time_hours=2 quality_tolerance=3% mergeable=yes"): Here(
        after=(SWEEP,)
    ),
    "python -m benchmarks.report_scale": No(Why.BY_HAND),
    "wandb sync": No(Why.SYSTEM),
    "tensorboard --logdir results/default": No(Why.SYSTEM),
    "make notebook": Elsewhere("report/test_notebook.py::test_compare_notebook_in_a_kernel"),
    "python -m bench method=full train.checkpoint_every_steps=100": Here(f"{TINY} train.checkpoint_every_steps=2"),
    "python -m bench -m method=full,lora,qlora train.micro_batch=auto hardware.memory_budget_gib=24": Here(
        f"{TINY} train.batch_size=2", runs=3
    ),
    "python -m bench -m experiment=equal_memory model=... hardware.memory_budget_gib=24": Here(
        f"{TINY} train.batch_size=2 hardware.memory_budget_gib=4", runs=3
    ),
    # docs/serving.md
    "python -m bench -m method=base,full,lora,qlora serve=full": Here(
        f"{TINY} {SERVED} method=base,lora", REPORT, after=("python -m bench method=lora",)
    ),
    "python -m bench export results/default/lora-... [to=FOLDER license=apache-2.0 form=merged]": Elsewhere(
        "sweep/test_exporting.py::test_a_served_form_is_exported_with_its_own_scores"
    ),
    "python -m bench export exports/lora-... check=true [base=BASE_FOLDER]": Elsewhere(
        "sweep/test_exporting.py::test_what_was_exported_is_checked_with_its_base"
    ),
    # docs/statistics.md, docs/tuning.md
    "python -m benchmarks.statistics --repetitions 500": No(Why.BY_HAND),
    'make tune ARGS="model=... task=..."': Here(f"{TINY} tune.max_points=2", RATES),
    'make sweep ARGS="model=... task=... rates=results/tune/default/rates.yaml"': Here(TINY, REPORT, after=(TUNE,)),
    '.venv/bin/python -m pip install -c constraints.txt -e ".[sweepers]"': No(Why.INSTALLS),
    (
        "python -m bench -m hydra/sweeper=optuna hydra.sweeper.n_trials=12 hydra.sweeper.n_jobs=1 method=lora "
        "'method.learning_rate=tag(log,interval(1e-4,2e-3))' method.adapter.rank=8,16,32 "
        "trial=true seed=1000 sweep=optuna"
    ): No(Why.EXTRA),
    "python -m bench tune method=lora tune.rates=[5e-4]": Here(TINY, RATES),
}
