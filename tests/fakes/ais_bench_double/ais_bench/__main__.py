"""`python -m ais_bench`."""

from __future__ import annotations

import sys

from ais_bench.infer.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
