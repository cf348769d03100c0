"""Files: weights, masks and the states of runs."""
