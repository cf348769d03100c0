"""Let a pruned network go out: what is dead is removed."""
