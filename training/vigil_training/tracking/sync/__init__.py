"""Sending of runs that were tracked offline: their parts, then their lineage as artifacts of Weights & Biases."""
