"""Checkpoints: folders that are complete or absent, checked by SHA-256, without pickled code, readable under any strategy."""
