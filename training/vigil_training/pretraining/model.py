"""The model that a recipe trains: a classifier, or encoders in contrastive pre-training."""

from vigil_modeling.contrastive_model import ContrastiveModel
from vigil_modeling.encoders import build_encoders
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.safety_model import build_model
from vigil_modeling.specs import Contrastive, ModelSpec
from vigil_training.checkpoint.reader import load_weights
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run


def build_recipe_model(recipe: Recipe, pretrained: bool = True) -> MultimodalModel:
    """Build the model that a recipe trains.

    Args:
        recipe: the recipe.
        pretrained: false skips pretrained weights, for a checkpoint to be loaded.

    Raises:
        UserError: see :func:`.build_model`.
    """
    if isinstance(recipe.objective, Contrastive):
        assert isinstance(recipe.model, ModelSpec)
        encoders = build_encoders(recipe.model.encoders, recipe.inputs, pretrained)
        return ContrastiveModel(encoders, recipe.model, recipe.taxonomy, recipe.objective)
    return build_model(recipe.model, recipe.inputs, recipe.taxonomy, load_weights=pretrained)


def load_best_model(run: Run) -> MultimodalModel:
    """Return the model that a run trained, with the best weights, in evaluation mode.

    Raises:
        UserError: if there is no checkpoint, or it cannot be read.
    """
    model = build_recipe_model(run.recipe, pretrained=False)
    load_weights(model, run.checkpoint("best"))
    return model.eval()
