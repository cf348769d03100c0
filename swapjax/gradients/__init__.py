"""The operator G: one loss gradient a row, stored or recomputed."""
