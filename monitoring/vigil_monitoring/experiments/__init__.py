"""Experiments: champion and challenger on the same traffic, with a verdict that is valid at every look."""
