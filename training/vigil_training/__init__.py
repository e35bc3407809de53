"""Recipes, the Lightning module, tracking and the vigil command."""
