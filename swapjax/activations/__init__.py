"""What each layer reads, followed through the program of the loss."""
