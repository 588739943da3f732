"""The package `ais_bench`, over the double of `aclruntime`."""
