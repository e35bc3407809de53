"""Recipes: schema, resolution, and validation errors with file and line. Torch is not needed.

Example:
    >>> resolved = resolve_recipe("recipes/demo.yaml", ["training.epochs=1"])
    >>> check_installed(resolved)
    >>> print(dump_recipe(resolved, origins=True))
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.recipe.json_schema import recipe_schema as recipe_schema
    from vigil_training.recipe.recipe import Recipe as Recipe
    from vigil_training.recipe.requirements import check_installed as check_installed
    from vigil_training.recipe.requirements import check_sources as check_sources
    from vigil_training.recipe.resolve import ResolvedRecipe as ResolvedRecipe
    from vigil_training.recipe.resolve import dump_recipe as dump_recipe
    from vigil_training.recipe.resolve import read_recipe as read_recipe
    from vigil_training.recipe.resolve import resolve_recipe as resolve_recipe

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Recipe": "vigil_training.recipe.recipe",
        "ResolvedRecipe": "vigil_training.recipe.resolve",
        "check_installed": "vigil_training.recipe.requirements",
        "check_sources": "vigil_training.recipe.requirements",
        "dump_recipe": "vigil_training.recipe.resolve",
        "read_recipe": "vigil_training.recipe.resolve",
        "recipe_schema": "vigil_training.recipe.json_schema",
        "resolve_recipe": "vigil_training.recipe.resolve",
    },
)
