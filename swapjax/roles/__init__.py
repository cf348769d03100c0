"""What each leaf of params does in its network: from its program, or from its name."""
