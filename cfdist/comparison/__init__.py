"""The room of `job=compare`: the same pictures through two models."""
