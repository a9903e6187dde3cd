"""The embedded task: a Python function -> its one-line docstring, from packages that are installed anyway.

It needs no network and no download: the source files of the standard library and of eight pinned packages are
parsed with `ast`, never imported. Only whole sentences that say something are kept as answers, and no module
contributes to two splits; what was left out is counted by reason.

Columns for the templates: `code` (without its docstring), `docstring` (one sentence), `name`, `module`, and `outline`
(the function in an invented notation).

    >>> loaded = load(task)
    >>> loaded.splits["train"][0].target
    'Return the sum of the diagonal elements.'
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import inspect
import os
import re
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.config import TaskConfig
from bench.identity import DOCSTRING_PACKAGES, package_versions
from bench.mistakes import refuse
from bench.worker.sources import Example, Loaded, content_hash
from bench.worker.sources.layouts import Row, column_problems, fill

COLUMNS = ("code", "docstring", "name", "module", "outline")
# Tests say little in their docstrings; `models` of transformers are copies of one another; the others are left
# out of the standard library by some Linux distributions, and would make the data differ between machines.
SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "models", "_vendor", "vendored", "site-packages", "dist-packages", "lib-dynload"),
    *("lib2to3", "idlelib", "turtledemo", "ensurepip", "distutils", "pydoc_data", "tkinter", "__pycache__"),
}
FILE_BYTES_MAXIMUM = 40_000  # larger ones are tables or generated, and parsing them takes half of the time
CODE_CHARACTERS = (80, 450)


def load(task: TaskConfig) -> Loaded:
    """All documented functions, divided 70/10/20 by module.

    Raises:
        ConfigurationError: when a template names a column that is not among `COLUMNS`.
    """
    refuse(column_problems(COLUMNS, task, "task.prompt", "task.target"))
    dropped: Counter[str] = Counter()
    gc.disable()  # syntax trees have no cycles: looking for some in millions of nodes costs a third of the time
    try:
        rows = distinct(_all_rows(dropped), dropped)
    finally:
        gc.enable()
    examples, empty = fill(rows, task)
    if empty:
        dropped["nothing left after the templates"] += len(empty)
    by_id = {row.where: row for row in rows}
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in examples:  # ordered by the hash of the name, so that other templates keep the same functions
        module = str(by_id[example.example_id].columns["module"])
        splits[split_of(module)].append(Example(example.example_id, example.prompt, example.target, module))
    for name in ("validation", "test"):
        splits[name] = without_near_copies(splits["train"], splits[name], by_id, dropped)
    listed = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return Loaded(splits, dict(sorted(dropped.items())), f"one-line docstrings of {listed}")


def split_of(module: str) -> str:
    """The split of every function of a module, by the module's hash."""
    bucket = int(content_hash(module)[:8], 16) % 100
    return "train" if bucket < 70 else "validation" if bucket < 80 else "test"


def _all_rows(dropped: Counter[str]) -> Iterator[Row]:
    for module, path in source_files(dropped):
        if (parsed := read_module(path)) is None:
            dropped["file: not valid Python"] += 1
        else:
            text, tree = parsed
            yield from rows_of_module(module, tree, text.splitlines(), dropped)


def read_module(path: Path) -> tuple[str, ast.Module] | None:
    """A file's text and its syntax tree; None: it is not valid Python."""
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():  # `open` honours the file's encoding cookie
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            text = file.read()
            return text, ast.parse(text)
    except (SyntaxError, UnicodeDecodeError):
        return None


def source_files(dropped: Counter[str]) -> Iterator[tuple[str, Path]]:
    """(module name, file) of every source file read, sorted."""
    roots = [("", Path(sysconfig.get_path("stdlib")))]
    for package in DOCSTRING_PACKAGES:
        spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
        if spec is not None and spec.submodule_search_locations:
            roots.append((package, Path(spec.submodule_search_locations[0])))
    for prefix, root in roots:
        for path in _python_files(root):
            parts = path.relative_to(root).with_suffix("").parts
            if path.stat().st_size > FILE_BYTES_MAXIMUM:
                dropped["file: larger than 40 kB"] += 1
                continue
            yield ".".join(([prefix] if prefix else []) + list(parts)).removesuffix(".__init__"), path


def _python_files(root: Path) -> Iterator[Path]:
    """Source files below a folder, sorted; skipped folders are not even entered."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith(("test_", "conftest", "_sysconfigdata")):
                yield Path(folder, name)


def rows_of_module(module: str, tree: ast.Module, lines: list[str], dropped: Counter[str]) -> Iterator[Row]:
    """The usable functions and methods of one parsed module; the others are counted in `dropped`."""
    for name, function in _functions(tree, ""):
        docstring = ast.get_docstring(function)
        if docstring is None:
            continue
        sentence = first_sentence(docstring)
        if sentence is None:
            dropped["docstring: no sentence of 15 to 120 characters"] += 1
            continue
        code = _code_without_docstring(function, lines)
        if code is None:
            dropped["code: nothing but the docstring"] += 1
        elif not CODE_CHARACTERS[0] <= len(code) <= CODE_CHARACTERS[1]:
            dropped["code: not 80 to 450 characters"] += 1
        elif not code.isascii() or "<|" in code:  # "<|": chat markup in the code would break the prompt
            dropped["code: not plain ASCII"] += 1
        else:
            columns = {"code": code, "docstring": sentence, "name": name, "module": module}
            yield Row(f"{module}:{name}", columns | {"outline": outline(function)})


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods with their qualified names; not those inside functions."""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")


def _code_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """The function's lines, dedented, its docstring removed; None when nothing else is in its body."""
    docstring, rest = function.body[0], [s for s in function.body[1:] if not _is_placeholder(s)]
    if not rest or rest[0].lineno <= (docstring.end_lineno or 0) or docstring.lineno == function.lineno:
        return None
    start = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    head, tail = lines[start - 1 : docstring.lineno - 1], lines[docstring.end_lineno : function.end_lineno]
    while tail and not tail[0].strip():
        tail.pop(0)
    indent = function.col_offset
    return "\n".join(line[indent:] if line[:indent].isspace() else line for line in head + tail).rstrip()


def _is_placeholder(statement: ast.stmt) -> bool:
    """`pass`, `...` and `raise NotImplementedError` tell nothing to summarize."""
    if isinstance(statement, ast.Raise):
        return "NotImplementedError" in ast.dump(statement)
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


# --- The sentence that is learned ---

CHARACTERS = (15, 120)
WORDS_MINIMUM = 3
WORDS_COMPARED_MINIMUM = 4

_ROLE = re.compile(r":[a-zA-Z][\w:+-]*:`([^`]*)`")  # :func:`~a.b.c`
_LITERAL = re.compile(r"`+([^`]*)`+_?")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([A-Za-z_]\w*)\*{1,2}(?![\w*])")
_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!cf)(?<!vs)(?<!Eq)(?<!Ref)(?<!resp)[.!?](?=\s|$)")
_SIGNATURE = re.compile(r"^[\w.]+\(.*?\)\s*(->|=|$)")  # numpy repeats it in front of the text
_NOISE = re.compile(
    r">>>|->|::|\.\. |\.\.\.|https?:|[Dd]eprecat|TODO|FIXME|XXX|\bref\b|"
    r"[{}|@$\\<>~^]|%[(sd]|:[a-z]+:|\[\d+\]|={2,}|-{3,}"
)
_EMPTY_WORDS = re.compile(
    r"^(See|Same as|Refer|Alias|Override|Overrides|Overridden|Inherited|Docstring|Note|Notes|Args|Arguments|"
    r"Parameters|Returns?:|Example|Examples|Usage|Copied|This (method|function) (is|was)|Test|Tests|Warning|"
    r"Initiali[sz]e self|Ditto|Like)\b"
)
_STOP_WORDS = {
    *("a", "an", "the", "of", "to", "in", "on", "for", "and", "or", "is", "are", "be", "by", "with", "from"),
    *("this", "that", "given", "if", "it", "its"),
}


def first_sentence(docstring: str) -> str | None:
    """The first sentence, cleaned, ending in a full stop; None when it is not worth learning."""
    paragraph = inspect.cleandoc(docstring).split("\n\n", 1)[0]
    text = _ROLE.sub(_role_text, " ".join(paragraph.split()))  # without reStructuredText's roles, literals, emphasis
    text = _EMPHASIS.sub(r"\1", _LITERAL.sub(r"\1", text))
    end = _END.search(text)
    sentence = text[: end.end()] if end else text
    if sentence[-1:].isalnum() or sentence[-1:] in "'\")":
        sentence += "."
    whole = sentence[:1].isupper() and sentence[-1:] in ".!?" and len(sentence.split()) >= WORDS_MINIMUM
    fits = CHARACTERS[0] <= len(sentence) <= CHARACTERS[1] and sentence.isascii()
    noisy = _NOISE.search(sentence) or _EMPTY_WORDS.search(sentence) or _SIGNATURE.search(sentence)
    return sentence if whole and fits and not noisy else None


def _role_text(role: re.Match[str]) -> str:
    """`~a.b.c` shows as c, `text <target>` as text."""
    content = role[1].split(" <")[0]
    return content.rpartition(".")[2] if content.startswith("~") else content


def near_keys(sentence: str) -> set[str]:
    """Keys of which two sentences share one when their words differ by at most one substitution.

    Compared without case, order, endings in s, and little words. A sentence of fewer than four words left has a
    single key: "Return the graph." is no variation of "Return the tree.".
    """
    found = re.findall(r"[a-z0-9_]+", sentence.lower())
    words = sorted({word.rstrip("s") for word in found if word not in _STOP_WORDS})
    keys = {" ".join(words)}
    if len(words) >= WORDS_COMPARED_MINIMUM:
        keys |= {" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))}
    return keys


# --- The outline: a notation that no model has seen ---


def outline(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A function in one line of an invented notation, which follows from its code alone."""
    return f"<{' ! '.join([function.name, *_parameters(function.args)])}> {{{' '.join(_statements(function))}}}"


def _parameters(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    found = [a.arg + "~" * (place >= without) for place, a in enumerate(positional)]
    if arguments.vararg:
        found.append(f"*{arguments.vararg.arg}")
    for keyword, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(f":{keyword.arg}" + "~" * (default is not None))
    if arguments.kwarg:
        found.append(f"**{arguments.kwarg.arg}")
    return found


def _statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Kinds of statements in the order of the source, nested ones included, docstrings and bare constants not."""
    inside = [node for node in ast.walk(function) if isinstance(node, ast.stmt) and node is not function]
    kinds = Counter(
        type(node).__name__
        for node in sorted(inside, key=lambda node: (node.lineno, node.col_offset))
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    )
    return [kind if count == 1 else f"{kind}*{count}" for kind, count in kinds.items()]


# --- Copies, and nearly copies ---

NEAR_COPY_CHARACTERS = 150  # shorter functions resemble one another by nature

_COMMENT = re.compile(r"#.*")
_WORD = re.compile(r"[A-Za-z_]\w*")


def distinct(rows: Iterator[Row], dropped: Counter[str]) -> list[Row]:
    """One row a name, a sentence and a code; the first by the hash of its name stays."""
    kept = []
    seen: dict[str, set[str]] = {"name": set(), "docstring": set(), "code": set()}
    for row in sorted(rows, key=lambda r: content_hash(r.where)):
        own_name = row.columns["name"].rpartition(".")[2]
        keys = {
            "name": row.where,
            "docstring": " ".join(_WORD.findall(row.columns["docstring"].lower())),
            # Without comments, white space and its own name: equal for copies under another name.
            "code": "".join(_COMMENT.sub("", row.columns["code"]).split()).replace(own_name, ""),
        }
        repeated = next((kind for kind, key in keys.items() if key in seen[kind]), None)
        if repeated:
            dropped[f"duplicate: same {repeated}"] += 1
            continue
        for kind, key in keys.items():
            seen[kind].add(key)
        kept.append(row)
    return kept


def renamed(code: str) -> str:
    """Code with its words numbered in order of appearance: equal for copies with other names throughout."""
    numbers: dict[str, str] = {}
    return "".join(_WORD.sub(lambda m: numbers.setdefault(m[0], f"v{len(numbers)}"), _COMMENT.sub("", code)).split())


def without_near_copies(
    train: list[Example], held_out: list[Example], rows: dict[str, Row], dropped: Counter[str]
) -> list[Example]:
    """Held-out examples whose answer or code is not a variation of one in the training split."""
    train_rows = [rows[e.example_id].columns for e in train]
    answers = {key for r in train_rows for key in near_keys(str(r["docstring"]))}
    codes = {renamed(str(r["code"])) for r in train_rows}
    kept = []
    for example in held_out:
        columns = rows[example.example_id].columns
        code = str(columns["code"])
        if not answers.isdisjoint(near_keys(str(columns["docstring"]))):
            dropped["held out: the docstring is a training one but for a word"] += 1
        elif len(code) >= NEAR_COPY_CHARACTERS and renamed(code) in codes:
            dropped["held out: the code is a training one but for names"] += 1
        else:
            kept.append(example)
    return kept
