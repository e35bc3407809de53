"""The page of a sweep: history, learning curves, importances, parallel coordinates, slices, Pareto front, and a table of trials.

It takes Optuna's trials, wherever they are stored, and imports no torch.
"""

from vigil_training.sweeps.report.page import write_sweep_page as write_sweep_page
from vigil_training.sweeps.report.view import Objective as Objective
from vigil_training.sweeps.report.view import SweepView as SweepView

__all__ = ["Objective", "SweepView", "write_sweep_page"]
