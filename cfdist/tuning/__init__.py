"""`job=tune`: the fastest settings on this machine that keep the model's numbers."""
