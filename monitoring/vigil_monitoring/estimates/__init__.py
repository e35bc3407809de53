"""Estimates of prevalence and online metrics from reviewed probability samples."""
