"""Metrics, thresholds, slices and reports: arrays in, findings out, whatever model made them."""
