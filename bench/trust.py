"""What names, texts and folders from somebody else may do here: be read and shown, within bounds, and nothing more.

Names never leave a folder, texts never steer a terminal or a page, nothing is written through a link, and no secret is
written down.

>>> printable("lora\\x1b[2J"), masked("--token hf_abcdefghijklmnopqrst")
('lora[2J', '--token ***')
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import BinaryIO

LONGEST_NAME, LONGEST_TEXT = 100, 5000  # characters: of a name; of a text that a page shows
SHORTEST_SECRET = 8  # characters of an environment variable's value: a shorter one is in too many words
# Control characters and those that turn the direction of the text around them: a name must not rewrite its page.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_TOKEN = re.compile(
    r"\b(?:hf_\w{16,}|sk-[\w-]{16,}|gh[a-z]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abp]-[\w-]{10,}|AKIA[0-9A-Z]{16})"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)
_SECRET_NAME = re.compile(r"TOKEN(?!IZ)|SECRET|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY", re.I)


def printable(text: object) -> str:
    """Text without control characters (line breaks and tabs stay) and without overrides of its direction."""
    return _UNPRINTABLE.sub("", str(text))


def shortened(text: str, characters: int) -> str:
    """The beginning of a text, with the number of characters left out."""
    if len(text) <= characters:
        return text
    return f"{text[:characters]}\n... ({len(text) - characters:,} more characters)"


def checked_name(text: str) -> str:
    """A name as it was given, if it can become part of a path and of a line.

    Raises:
        ValueError: it is too long, leads out of a folder, or holds characters that are not printable.
    """
    if not 0 < len(text) <= LONGEST_NAME:
        raise ValueError(f"a name has 1 to {LONGEST_NAME} characters; this one has {len(text)}")
    if not text.isprintable() or "\\" in text or not all(part.strip(". ") for part in text.split("/")):
        raise ValueError("a name has printable characters, no backslash, and no part that is empty or dots alone")
    return text


def masked(text: str) -> str:
    """Text with *** in place of tokens, passwords in addresses, and what the environment holds by a secret's name."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    for value in sorted(values, key=len, reverse=True):
        plain = value.startswith(("/", ".", "~")) or (value.isalpha() and value.islower())  # a path, or a mere word
        if len(value) >= SHORTEST_SECRET and not plain:
            text = text.replace(value, "***")
    return _TOKEN.sub("***", text)


def own_folder(folder: Path) -> Path:
    """Make a folder to write into.

    Raises:
        OSError: it is a link, whose files are somebody else's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return no_link(folder)


def fresh_file(path: Path) -> BinaryIO:
    """A new file to write, in place of whatever has its name: what a link leads to stays as it is."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def lock_file(path: Path) -> BinaryIO:
    """A file to lock, left as it is. Raises OSError for a link."""
    return os.fdopen(os.open(no_link(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "rb+", buffering=0)


def no_link(path: Path) -> Path:
    """The path, which is no link, or OSError."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a link, and nothing is written through links; delete it", str(path))
    return path
