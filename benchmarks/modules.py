"""Which module of Python's library holds a function of this description? A task that retrieval answers best.

python -m benchmarks.modules > modules.csv       the data of a sweep in docs/maintainers/evidence.md
"""

from __future__ import annotations

import csv
import importlib
import inspect
import sys

MODULES = (
    "argparse ast asyncio datetime decimal email.utils inspect itertools json numpy.fft numpy.linalg os "
    "pandas.plotting random scipy.ndimage scipy.signal scipy.sparse.linalg scipy.special scipy.stats shutil "
    "socket sqlite3 statistics tarfile threading torch.fft torch.linalg torch.special urllib.parse zipfile"
)


def descriptions() -> list[tuple[str, str]]:
    """(the first paragraph of what is known of a function or class, its module)."""
    found: dict[str, str] = {}
    for name in MODULES.split():
        module = importlib.import_module(name)
        for public in [name for name in dir(module) if not name.startswith("_")]:
            thing = getattr(module, public)
            words = " ".join(((callable(thing) and inspect.getdoc(thing)) or "").split("\n\n")[0].split())
            if len(words) >= 25 and "(" not in words[:30]:
                found.setdefault(words[:160], name)
    return list(found.items())


if __name__ == "__main__":
    out = csv.writer(sys.stdout)
    out.writerows([("text", "label"), *descriptions()])
