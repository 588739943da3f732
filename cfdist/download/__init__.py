"""Getting WIDER FACE's validation set onto this machine: fetched, checked, placed whole."""
