"""`python main.py [key=value ...]`: composes the configuration and runs jobs/<job>.py."""

from __future__ import annotations

import signal
import sys

# Until the command handles Ctrl-C itself, it ends as any program does, without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cfdist.command.start import main

if __name__ == "__main__":
    sys.exit(main())
