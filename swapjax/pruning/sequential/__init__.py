"""Pruning block by block, for networks that do not fit the device."""
