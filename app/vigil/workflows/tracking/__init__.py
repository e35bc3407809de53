"""Tracking that joins packages: local workers of a sweep, links in W&B's registry."""
