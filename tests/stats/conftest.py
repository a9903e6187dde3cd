"""The made-up sweep of tests/report serves the analysis too; its folder is put on the path for both."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
