"""Let a pruned network go out: what is dead removed, sizes, measured time."""
