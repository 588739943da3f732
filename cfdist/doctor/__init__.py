"""What a host has for a run and what it lacks, each with a remedy: `job=doctor`."""
