"""The Ascend host's tools: which chips there are (npu-smi), and OM files made from ONNX (ATC)."""
