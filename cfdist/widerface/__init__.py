"""WIDER FACE: layout and manifest, ground truth, metric, prediction files."""
