"""A folder with all that a run needs of the world: what is in it, and how the libraries find it there.

FOLDER/bundle-manifest.json   what was gathered, with revisions, sizes and SHA-256; written last
FOLDER/README.md              how to install and run on the other machine
FOLDER/hub/                   the model hub's cache: models, and files of data sets
FOLDER/datasets/, nltk/       tables that the `datasets` library made of them; word lists of lm-eval's tasks
FOLDER/files/                 the user's own files that the command names
FOLDER/wheels/, bench.git     Python packages, and the harness's own history as a git bundle
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from bench.spec.manifest import ExportedFile

BUNDLE_MANIFEST = "bundle-manifest.json"
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Source:
    """Something of the model hub, or of a Python package, by the revision that was gathered."""

    kind: Literal["model", "dataset"]
    name: str  # hub id, or the package of an embedded model
    revision: str | None  # hub commit, or the package's version; None where there is none


@dataclass(frozen=True, config=_STRICT)
class Bundle:
    """What a bundle holds."""

    overrides: list[str]  # of the runs it is for, with the user's own files as they are named inside it
    sources: list[Source]
    python: str  # the wheels are for this version and platform
    platform: str
    git_commit: str | None
    wheels: bool
    fetched_at: str  # ISO 8601, UTC
    files: dict[str, ExportedFile]  # by path inside the folder, the manifest left out
    schema_version: int = 1


def bundle_environment(folder: Path, online: bool) -> dict[str, str]:
    """The environment in which Hugging Face's libraries and NLTK use a bundle, and nothing else unless `online`."""
    names = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "NLTK_DATA": "nltk"}
    there = {variable: str(folder / name) for variable, name in names.items()}
    return there if online else there | {"HF_HUB_OFFLINE": "1"}
