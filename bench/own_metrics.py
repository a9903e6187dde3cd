"""Metrics of one's own: what their names mean, which files hold their code, and how it is loaded.

    my_scores:grade             the function `grade(prediction, reference, example)` of my_scores.py: a number, or a
                                mapping of several; `example` holds the columns of your file
    evaluate:NAME_OR_FOLDER     a module of the library `evaluate`: a folder, or a name on the hub, behind which @
                                and a revision may stand

>>> column_name("my_scores:grade"), code_files(["my_scores:grade"])
('grade', [PosixPath('my_scores.py')])
"""

from __future__ import annotations

import functools
import inspect
import numbers
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

EVALUATE = "evaluate:"
# Modules of `evaluate` state no direction. Of these less is better: error rates, and distances.
_ERRORS = {"wer", "cer", "ter", "mer", "mae", "mse", "mape", "smape", "mase", "perplexity", "character"}

Example = Mapping[str, Any]
Grade = Callable[[str, str, Example], Any]  # (prediction, reference, example) -> a number, or a mapping of several
Range = tuple[float | None, float | None]  # least and most possible value; None: not stated
Stated = tuple[Grade, Range | Mapping[str, Range], bool | Mapping[str, bool]]  # with its range and direction


def of_three(function: Callable[..., Any]) -> Grade:
    """A function that takes the example, from one that may not."""
    if len(inspect.signature(function).parameters) >= 3:
        return function
    return lambda prediction, reference, example: function(prediction, reference)


def is_own(name: str) -> bool:
    """Whether it names a function or a module of somebody else's, rather than a built-in metric."""
    return ":" in name


def column_name(name: str) -> str:
    """What the scores are called: `grade` of my_scores:grade, `wer` of evaluate:folder/wer."""
    if name.startswith(EVALUATE):
        return Path(name.removeprefix(EVALUATE)).name.partition("@")[0]
    return name.rpartition(":")[2]


def without_place(name: str) -> str:
    """A metric's name without the path of its file or folder, whose content counts; a hub name stays whole."""
    by_path = name.removeprefix(EVALUATE).startswith((".", "/", "~"))
    return column_name(name) if is_own(name) and (by_path or not name.startswith(EVALUATE)) else name


def code_files(names: Iterable[str]) -> list[Path]:
    """The Python files whose code the metrics run, in order; nothing is imported. Built-in and hub names have none."""
    found: set[Path] = set()
    for name in filter(is_own, names):
        place = Path(name.removeprefix(EVALUATE)).expanduser()
        if not name.startswith(EVALUATE):
            found |= {file} if (file := _module_file(name.rpartition(":")[0])) else set()
        elif place.is_dir():
            found |= set(place.rglob("*.py"))
        elif place.is_file():
            found.add(place)
    return sorted(found)


def _module_file(module: str) -> Path | None:
    """The file of `my_scores`, `package.my_scores` or `folder/my_scores.py`: below the current folder, or installed."""
    if module.endswith(".py"):
        return path if (path := Path(module).expanduser()).is_file() else None
    inside = module.replace(".", "/")
    candidates = (Path(folder, f"{inside}{end}") for folder in (".", *sys.path) for end in (".py", "/__init__.py"))
    return next((path for path in candidates if path.is_file()), None)


def loaded(name: str) -> Stated:
    """The function or module that a name means, and what it states of its numbers. Its code is run.

    Raises:
        ValueError: unknown files or functions, and code that cannot be imported.
    """
    if name.startswith(EVALUATE):
        return _evaluate_module(name.removeprefix(EVALUATE))
    module, _, function = name.rpartition(":")
    file = _module_file(module)
    if file is None:
        raise ValueError(f"no file {module.replace('.', '/').removesuffix('/py')}.py below {Path.cwd()} or installed")
    given = getattr(_imported(file), function, None)
    if not callable(given):
        raise ValueError(f"{file} has no function {function!r}")
    return of_three(given), getattr(given, "range", (None, None)), getattr(given, "higher_is_better", True)


@functools.cache
def _imported(file: Path) -> Any:
    """The module of a file, run once; what lies beside the file can be imported by it."""
    loader = SourceFileLoader(f"own_metric_{file.stem}", str(file))
    module = sys.modules[loader.name] = ModuleType(loader.name)  # there dataclasses look for it
    module.__file__ = loader.path
    sys.path.append(str(file.resolve().parent))
    try:
        loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    return module


@functools.cache
def _evaluate_module(name: str) -> Stated:
    """A module of `evaluate`, asked about one example at a time."""
    import evaluate  # seconds to import

    folder = Path(name).expanduser()
    place, _, revision = (str(folder), "", "") if folder.exists() else name.partition("@")
    try:
        module = evaluate.load(place, revision=revision or None, keep_in_memory=True)
    except Exception as error:  # the library raises a dozen kinds for one cause: the name, the network, the code
        raise ValueError(f"{name!r} cannot be loaded by evaluate: {type(error).__name__}: {error}") from error
    features = module.features[0] if isinstance(module.features, list) else module.features
    listed = type(features.get("references")).__name__ in ("List", "LargeList", "Sequence", "list")

    def grade(prediction: str, reference: str, example: Example) -> Any:
        result = module.compute(predictions=[prediction], references=[[reference] if listed else reference])
        # of a list, which is by example, the only one
        alone = {name: v[0] if isinstance(v, list) and len(v) == 1 else v for name, v in (result or {}).items()}
        values = {name: float(value) for name, value in alone.items() if isinstance(value, numbers.Real)}
        return next(iter(values.values())) if len(values) == 1 else values

    falling = column_name(EVALUATE + name).lower() in _ERRORS
    return grade, getattr(module, "range", (None, None)), getattr(module, "higher_is_better", not falling)
