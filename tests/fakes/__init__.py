"""Stand-ins for hardware and tools that no test machine has."""
