"""Weights & Biases and local metrics."""
