"""What may go and how much of it: plans, budgets, patterns, masks."""
