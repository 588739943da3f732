"""CenterFace as a PyTorch network: its layers, its checkpoints, its way to ONNX."""
