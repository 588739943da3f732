"""cfdist: the WIDER FACE accuracy and the speed of CenterFace, on many devices at once."""

import os

__version__ = "0.1.0"

# Once imported, ONNX Runtime tells its maker of it and leaves a file in the temporary folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
