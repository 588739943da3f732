"""The room of `job=quantize`: an int8 copy of an ONNX, and what it costs and gains."""
