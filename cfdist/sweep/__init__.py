"""A sweep (Hydra's multirun): its folder is guarded, and its runs are summed up at the end."""
