"""`python main.py [key=value ...]`: composes the configuration and runs jobs/<job>.py."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from cfdist.command.cli import main
    except ImportError as error:
        # A checkout whose own packages are missing, or a Python that is too old for them.
        if (error.name or "").partition(".")[0] in ("cfdist", "jobs"):
            raise
        print(
            f"cfdist: {sys.executable} cannot import what is needed ({error}); call ./run.sh in "
            "place of main.py, which makes an environment of its own with all of it",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit(main())
