"""Errors of training."""

from vigil_data.errors import Failure


class TrainingFailure(Failure):
    """Training cannot continue, although the recipe is valid."""
