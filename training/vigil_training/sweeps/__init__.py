"""Sweeps: a recipe and a search space, Optuna's samplers and pruners, and one append-only file for each worker.

Example:
    >>> plan = read_sweep("recipes/sweeps/comments.yaml")
    >>> folder = open_sweep(plan, "sweeps/comments")
    >>> with Preemption() as stop:
    ...     run_worker(folder, stop)
"""
