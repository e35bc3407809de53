"""Tracking that joins packages: local workers of a sweep."""
