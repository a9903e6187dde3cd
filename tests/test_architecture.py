"""Dependencies run one way, and the parent and the analysis stay free of torch: proven by reading imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "bench").rglob("*.py"))
RANK = {  # place -> its rank; a module imports only what ranks below it, or its own folder
    "own_metrics": -2, "metrics": -1, "trust": -1, "outcome": -1, "served": -1,
    "config": 0, "mistakes": 1, "identity": 1, "record": 1, "fairness": 2, "checkpoint": 2, "machine": 2,
    "compose": 3, "elsewhere": 3, "planner": 4,
    "stats": 5, "sweep": 6, "worker": 6, "report": 6, "bench": 7,
}  # fmt: skip
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "lm_eval"}


def place_of(path: Path) -> str:
    """The folder of a module, or its own name where the order names it; `bench` for the command line."""
    parts = path.relative_to(ROOT / "bench").parts
    return parts[0] if len(parts) > 1 else path.stem if path.stem in RANK else "bench"


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside functions; type-checking imports too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_run_one_way(path: Path) -> None:
    own = place_of(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("bench.")}
    places = {name if name in RANK else "bench" for name in used} - {own}
    wrong = {place for place in places if RANK[place] >= RANK[own]}
    assert not wrong, f"{path.name} of {own} imports {wrong}"


@pytest.mark.parametrize("path", [p for p in MODULES if place_of(p) != "worker"], ids=lambda p: p.name)
def test_only_the_worker_imports_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


def test_every_module_says_why_it_exists() -> None:
    silent = [str(p) for p in MODULES if p.read_text().strip() and ast.get_docstring(ast.parse(p.read_text())) is None]
    assert silent == []


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['bench', '--help']\n"
        "from bench.cli import main\n"
        "assert main() == 0\n"
        f"assert not {HEAVY!r} & set(sys.modules), set(sys.modules) & {HEAVY!r}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Groups" in done.stdout


def test_the_methods_differ_in_two_places_only() -> None:
    """No other module asks which method runs."""
    for path in MODULES:
        if path.name in ("methods.py", "config.py") or place_of(path) in ("stats", "report"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                assert not words & {"full", "lora", "qlora"}, f"{path} asks for a method by name"
