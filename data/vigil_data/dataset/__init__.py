"""A versioned Lance table of items."""
