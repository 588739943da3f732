"""cfdist: the WIDER FACE accuracy and the speed of CenterFace, on many devices at once."""

__version__ = "0.1.0"
