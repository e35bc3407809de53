"""Estimators of survey sampling: shares of traffic from a probability sample of reviewed rows and scores of all rows."""
