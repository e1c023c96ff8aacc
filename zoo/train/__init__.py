"""One run: from a resolved recipe to a checkpoint."""
