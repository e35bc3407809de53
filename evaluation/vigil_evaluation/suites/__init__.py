"""Functional tests: what a model gets right case by case, for whom, and whether it follows minimal pairs."""
