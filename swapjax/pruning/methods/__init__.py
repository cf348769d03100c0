"""The methods of post-training pruning, a file a method."""
