"""``engine: wandb``: W&B chooses the points of a sweep, and its agent starts the trials.

vigil sweep run ─▶ wandb.sweep (once) ─▶ wandb agent ─▶ trial.py for each point ─▶ the worker's own trial
"""
