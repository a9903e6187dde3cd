"""Docstrings -> one clean sentence, or nothing.

The answers of the embedded task must be worth learning: a whole sentence of plain words, without the markup of
a documentation tool, and not a remark about the function's place in the library ("See base class.").

    >>> first_sentence("Return the :class:`Foo` of *x*, e.g. 3.  More text.")
    'Return the Foo of x, e.g. 3.'
"""

from __future__ import annotations

import inspect
import re

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
    text = plain(" ".join(paragraph.split()))
    end = _END.search(text)
    sentence = text[: end.end()] if end else text
    if sentence[-1:].isalnum() or sentence[-1:] in "'\")":
        sentence += "."
    whole = sentence[:1].isupper() and sentence[-1:] in ".!?" and len(sentence.split()) >= WORDS_MINIMUM
    fits = CHARACTERS[0] <= len(sentence) <= CHARACTERS[1] and sentence.isascii()
    noisy = _NOISE.search(sentence) or _EMPTY_WORDS.search(sentence) or _SIGNATURE.search(sentence)
    return sentence if whole and fits and not noisy else None


def plain(text: str) -> str:
    """Text without reStructuredText roles, literals and emphasis."""
    text = _ROLE.sub(lambda match: _role_text(match[1]), text)
    return _EMPHASIS.sub(r"\1", _LITERAL.sub(r"\1", text))


def _role_text(content: str) -> str:
    """`~a.b.c` shows as c, `text <target>` as text."""
    content = content.split(" <")[0]
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
