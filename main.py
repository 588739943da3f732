"""`python main.py [key=value ...]`: composes the configuration and runs jobs/<job>.py."""

from __future__ import annotations

import sys

from cfdist.command.start import main

if __name__ == "__main__":
    sys.exit(main())
