"""From row numbers to batches of packed segments."""
