"""What to label next: scores of decisions by strategy, for a draw with known inclusion probabilities."""
