"""The guide's workflow through files: input tensors, raw outputs, and the folders they are in."""
