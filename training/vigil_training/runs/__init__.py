"""The run folder, and prediction with a run's model."""
