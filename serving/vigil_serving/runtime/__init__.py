"""Decisions from a bundle, without torch."""
