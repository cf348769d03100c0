"""Let a pruned network go out: what is dead is removed."""

"""What a pruned network is worth where it runs: sizes, time, and smaller arrays."""
