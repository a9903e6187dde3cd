"""Where the time of a training step goes, by kind of operation, beside what the matrix products would take at best.

    python -m benchmarks.where                        lora, compiled, as in the sweep
    python -m benchmarks.where --method full --eager

Four steps under `torch.profiler`, after four that warm up and compile. Self times are summed by kind; what inductor
fused has no name of its own and shows as the self time of the compiled regions that it runs in. "At the peak": the
needed arithmetic of that kind (padding left out) at the speed of the largest square product that was measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from bench.compose import compose
from bench.worker import device
from bench.worker import prepare as prepare_stage
from bench.worker.instruments import tokens as flops
from bench.worker.main import Context, Progress
from benchmarks.arms import Arms

STEPS = 4
KINDS = {  # the first whose words occur in an operation's name
    "attention": ("scaled_dot_product", "softmax"),
    "optimizer and clipping": ("adamw", "norm_", "_foreach", "Optimizer", "_norm"),
    "matrix products": ("mm", "linear", "matmul", "onednn", "mkldnn"),
    "fused by the compiler, and its glue": ("Compiled", "compiled", "inductor", "fx graph", "FxGraph", "cpp_fused"),
    "copies and conversions": ("copy", "_to_", "::to", "cat", "contiguous", "fill", "zero", "empty", "clone"),
    "dequantization": ("dequant", "bitsandbytes", "4bit"),
}
OTHER = "other"


def main() -> None:
    """Profile and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    compiling = "off" if options.eager else "regional"
    overrides = [f"method={options.method}", f"train.max_steps={STEPS}", f"train.compile={compiling}", "suite=none"]
    with tempfile.TemporaryDirectory() as folder:
        kept = [f"paths.{name}={folder}/{name}" for name in ("results", "artifacts")]
        (config,) = compose([*overrides, *kept], multirun=False)
        context = Context(Path(folder), config, Progress(Path(folder), "train"))
        prepare_stage.run(context)
        resolved = device.resolve(config)
        peak = flops.matmul_peak_flops_per_second(resolved.type, resolved.compute_dtype, resolved.synchronize)
        arms = Arms(context)
        at_peak = {kind: needed / peak / STEPS for kind, needed in arms.needed_flops().items()}
        arms.train(False, defaultdict(list))
        plain, _ = arms.train(False, defaultdict(list))
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            profiled, _ = arms.train(False, defaultdict(list))
    seconds: dict[str, float] = defaultdict(float)
    names: dict[str, tuple[float, str]] = {}
    for event in profiler.key_averages():
        kind = next((k for k, words in KINDS.items() if any(word in event.key for word in words)), OTHER)
        spent = event.self_cpu_time_total / 1e6 / STEPS
        seconds[kind] += spent
        names[kind] = max(names.get(kind, (0.0, "")), (spent, event.key))
    total = sum(seconds.values())
    rows = [
        [kind, spent, 100 * spent / total, at_peak.get(kind), names[kind][1][:40]]
        for kind, spent in sorted(seconds.items(), key=lambda pair: -pair[1])
    ]
    heads = ["kind", "s a step", "%", "at the peak, s", "the largest"]
    print(tabulate(rows, heads, "github", floatfmt=("", ".2f", ".0f", ".2f", "")))
    best = sum(at_peak.values())
    print(f"\nAt the peak a step takes {best:.2f} s: {best * STEPS / sum(plain):.2f} of it is reached.")
    print(f"A step: {sum(plain) / STEPS:.2f} s, under the profiler {sum(profiled) / STEPS:.2f} s.")
    print(f"Matmul peak of this machine: {peak / 1e9:.0f} GFLOP/s in {resolved.compute_dtype}.")


if __name__ == "__main__":
    main()
