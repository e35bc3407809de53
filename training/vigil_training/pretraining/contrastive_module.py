"""The Lightning module of contrastive pre-training."""

from collections.abc import Mapping

from torch import Tensor

from vigil_data.loading.batch import Batch
from vigil_modeling.contrastive_model import ContrastiveModel
from vigil_training.distributed.rank_group import RankGroup
from vigil_training.pretraining.gathering import gather_embeddings
from vigil_training.pretraining.retrieval import gathered_metrics
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer.errors import TrainingFailure
from vigil_training.trainer.lightning_module import TrainingModule


class ContrastiveModule(TrainingModule):
    """Contrastive pre-training: the optimizer step of :class:`.TrainingModule` with another loss and other metrics.

    Args:
        model: the model to train.
        recipe: optimizer, clipping and accumulation.
        total_steps: optimizer steps of the run.
        ranks: the group in which validation outputs are gathered.
        releases: see :class:`.TrainingModule`.
    """

    def __init__(
        self, model: ContrastiveModel, recipe: Recipe, total_steps: int, ranks: RankGroup, releases: Mapping[str, int] | None
    ) -> None:
        super().__init__(model, model.similarity, recipe, total_steps, ranks, releases=releases)
        self._embedded: list[tuple[Tensor, Tensor]] = []

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the batches of all ranks, which is the same on each, so that its mean over ranks is itself."""
        embeddings_MND, present_MN = gather_embeddings(self.model(batch, touch_all=self._distributed), self._ranks)
        loss: Tensor = self.loss(embeddings_MND, present_MN)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the embeddings; retrieval is over all items of all ranks."""
        del batch_idx
        self.refused += batch.refused
        if len(batch) or self._distributed:
            embeddings_MND, present_MN = self.model(batch, touch_all=self._distributed)
            self._embedded.append((embeddings_MND.cpu(), present_MN.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Compute recall.

        Raises:
            TrainingFailure: if embeddings are not finite.
        """
        embedded, self._embedded = self._embedded, []
        try:
            self.validation_metrics = gathered_metrics(embedded, self._ranks, self.model.modalities)
        except FloatingPointError as error:
            raise TrainingFailure(
                f"{error} in the validation after step {self.trainer.global_step}: training diverged; "
                "a lower optimizer.lr or training.clip, or training.precision fp32, may help"
            ) from error
