"""What one child process is asked to do, and the names of its files.

>>> Run("trl", "lora", micro_batch=4).name
'trl-lora-m4-bf16-s0'
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TRAINERS = ("ours", "trl", "plain", "litgpt")
METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Run:
    """One trainer, one method, one micro-batch, one precision, one seed."""

    trainer: str
    method: str
    micro_batch: int
    precision: str = "bf16"  # of the arithmetic: bf16 autocast, or fp32 throughout
    seed: int = 0
    steps: int = 8
    untimed_steps: int = 3
    model: str = "smollm2-135m"
    compiled: bool = True  # ours only

    @property
    def name(self) -> str:
        eager = "" if self.compiled or self.trainer != "ours" else "-eager"
        return f"{self.trainer}-{self.method}-m{self.micro_batch}-{self.precision}-s{self.seed}{eager}"

    def overrides(self, folder: str, cache: str) -> list[str]:
        """This run in our configuration's terms; the others read their settings from the same one."""
        return [
            f"model={self.model}",
            f"method={self.method}",
            "suite=none",
            f"seed={self.seed}",
            f"train.max_steps={self.steps}",
            f"train.untimed_steps={self.untimed_steps}",
            f"train.micro_batch={self.micro_batch}",
            f"train.compile={'regional' if self.compiled else 'off'}",  # `auto` compiles from a longer run on
            "train.heldout_points=1",  # before the first and after the last step: none within the timed ones
            f"hardware.compute_dtype={'float32' if self.precision == 'fp32' else 'bfloat16'}",
            f"paths.results={folder}",
            f"paths.artifacts={folder}/artifacts",
            f"paths.cache={cache}",
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
