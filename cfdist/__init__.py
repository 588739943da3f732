"""cfdist: the WIDER FACE accuracy and the speed of CenterFace, on many devices at once."""

import os

__version__ = "0.1.0"

# ONNX Runtime leaves a file in the temporary folder, and tells its maker, as soon as it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
