"""Calibrated probabilities, conformal prediction and drift."""
