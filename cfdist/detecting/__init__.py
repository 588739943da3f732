"""`job=detect`: the faces in any pictures, without ground truth."""
