"""`python -m bench`, in UTF-8 whatever the locale: names, data and messages are."""

import os
import sys

if sys.getfilesystemencoding() != "utf-8":
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]])

from bench.cli import main

sys.exit(main())
