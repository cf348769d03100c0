"""Steps over examples: batches, gradient steps, fine-tuning, batch statistics."""
