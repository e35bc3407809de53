"""Recipes: schema, resolution, validation errors with file and line."""
