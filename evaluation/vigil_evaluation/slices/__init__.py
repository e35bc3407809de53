"""Groups of items, and metrics for each."""
