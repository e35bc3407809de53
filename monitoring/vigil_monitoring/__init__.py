"""Production monitoring on tables of any model's scores: samples, reviews, estimates, drift, experiments, reports; no torch."""
