"""Lightning callbacks of training: ranks, early stopping, unfreezing, averages, checkpoints, metrics, progress, profiling.

They act around the optimizer step, which is :meth:`vigil_training.trainer.lightning_module.TrainingModule.train_step`.
"""

from vigil_training.trainer.callbacks.checkpoint import CheckpointCallback as CheckpointCallback
from vigil_training.trainer.callbacks.early_stopping import EarlyStopping as EarlyStopping
from vigil_training.trainer.callbacks.gradual_unfreezing import GradualUnfreezing as GradualUnfreezing
from vigil_training.trainer.callbacks.metrics import MetricsCallback as MetricsCallback
from vigil_training.trainer.callbacks.profiler import ProfilerWindow as ProfilerWindow
from vigil_training.trainer.callbacks.progress import TrainingProgress as TrainingProgress
from vigil_training.trainer.callbacks.rank_sync import RankSync as RankSync
from vigil_training.trainer.callbacks.validation_report import Report as Report
from vigil_training.trainer.callbacks.validation_report import ValidationReport as ValidationReport
from vigil_training.trainer.callbacks.weight_averaging import WeightAveraging as WeightAveraging
