"""Training with Lightning: module and optimizer step, optimizer and schedule, data module, callbacks, and `fit_recipe`.

Start reading at :meth:`vigil_training.trainer.lightning_module.TrainingModule.train_step`.

Example:
    >>> run = fit_recipe(recipe, resolved_text, "runs/demo")
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.trainer.data_module import DataModule as DataModule
    from vigil_training.trainer.errors import TrainingFailure as TrainingFailure
    from vigil_training.trainer.fit import fit_recipe as fit_recipe
    from vigil_training.trainer.lightning_module import TrainingModule as TrainingModule
    from vigil_training.trainer.lightning_trainer import build_trainer as build_trainer
    from vigil_training.trainer.lr_scheduler import build_lr_scheduler as build_lr_scheduler
    from vigil_training.trainer.optimizer import build_optimizer as build_optimizer
    from vigil_training.trainer.optimizer import parameter_groups as parameter_groups

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DataModule": "vigil_training.trainer.data_module",
        "TrainingFailure": "vigil_training.trainer.errors",
        "TrainingModule": "vigil_training.trainer.lightning_module",
        "build_lr_scheduler": "vigil_training.trainer.lr_scheduler",
        "build_optimizer": "vigil_training.trainer.optimizer",
        "build_trainer": "vigil_training.trainer.lightning_trainer",
        "fit_recipe": "vigil_training.trainer.fit",
        "parameter_groups": "vigil_training.trainer.optimizer",
    },
)
