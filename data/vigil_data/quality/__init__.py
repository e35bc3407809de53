"""Trust in the data: the check of everything that can be wrong with an item, and the quarantine."""
