"""`python -m bench.worker RUN_DIR STAGE`."""

import sys
from pathlib import Path

from bench.worker.main import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
