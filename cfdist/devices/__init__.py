"""What a device does with its share of the work, in one process: no Ray in here."""
