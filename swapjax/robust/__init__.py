"""Training and testing where inputs are attacked or labels are wrong."""
