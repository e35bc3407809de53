"""Metrics by identity group."""
