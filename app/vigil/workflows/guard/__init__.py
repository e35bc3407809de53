"""Workflows of `vigil guard`."""
