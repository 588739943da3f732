"""What `job=benchmark` measures: the devices alone, the host alone, and both together."""
