"""What a person sees: the results file, the tables, the progress bar."""
