"""The only place where a recipe's specs become objects."""

from vigil_modeling.loss import MaskedBCE
from vigil_modeling.safety_model import SafetyModel, build_model
from vigil_training.recipe.recipe import Recipe


def assemble(recipe: Recipe, load_weights: bool = True) -> SafetyModel:
    """Build the recipe's model.

    Args:
        recipe: what to build.
        load_weights: whether to read pretrained weights; false builds the architecture alone, for a checkpoint to fill.

    Raises:
        UserError: if weights are absent or are those of another model.
    """
    return build_model(recipe.model, recipe.inputs, recipe.taxonomy, load_weights)


def loss(recipe: Recipe) -> MaskedBCE:
    """Build the recipe's loss."""
    return MaskedBCE(recipe.loss, recipe.taxonomy)
