"""What surrounds a job: from the command line to an exit code."""
