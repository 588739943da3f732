"""The Ray side: the cluster, the device actors, the reducer actor, and the run that joins them."""
