"""What a person can ask for, one module each, read top to bottom."""
