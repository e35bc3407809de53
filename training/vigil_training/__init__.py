"""Training: recipes in, runs out.

Example:
    >>> resolved = resolve_recipe("recipes/demo.yaml")
    >>> run = fit_recipe(resolved.recipe, dump_recipe(resolved), "runs/demo")
    >>> run.read_thresholds()
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.planning.plan import plan_run as plan_run
    from vigil_training.recipe.recipe import Recipe as Recipe
    from vigil_training.recipe.resolve import dump_recipe as dump_recipe
    from vigil_training.recipe.resolve import read_recipe as read_recipe
    from vigil_training.recipe.resolve import resolve_recipe as resolve_recipe
    from vigil_training.runs.predict import predict_rows as predict_rows
    from vigil_training.runs.run import Run as Run
    from vigil_training.trainer.fit import fit_recipe as fit_recipe

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Recipe": "vigil_training.recipe.recipe",
        "Run": "vigil_training.runs.run",
        "dump_recipe": "vigil_training.recipe.resolve",
        "fit_recipe": "vigil_training.trainer.fit",
        "plan_run": "vigil_training.planning.plan",
        "predict_rows": "vigil_training.runs.predict",
        "read_recipe": "vigil_training.recipe.resolve",
        "resolve_recipe": "vigil_training.recipe.resolve",
    },
)
