"""Inference that holds at every look: confidence sequences and e-processes."""
