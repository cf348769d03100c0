"""What every room knows: types, trees, checks, device placement, atomic writes."""
