"""What a pruned network is worth where it runs: sizes, time, and smaller arrays."""
