"""What goes wrong around a run: devices, nodes, disks, files and signals."""

import os

# Whether the tests try every case; else they try some of each kind.
IS_LONG = bool(os.environ.get("CFDIST_LONG_TESTS"))
