"""The metrics of a training, which every logger gets; ``docs/tracking.md`` has the same table.

Example:
    >>> [metric.name for metric in METRICS if metric.exact]
    ['train/loss', 'train/loss/LABEL', ...]
    >>> is_exact("train/loss/spam"), is_exact("speed/items")
    (True, False)
"""

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Metric:
    """A metric of a training.

    Attributes:
        name: its name; a part in capitals stands for a name of the recipe, such as a label.
        meaning: what it is, with its unit.
        needs: what it needs, such as several ranks; empty if every run has it.
        exact: whether a repeated or resumed training has the same values; others depend on the clock or the machine.
    """

    name: str
    meaning: str
    needs: str = ""
    exact: bool = True

    def matches(self, name: str) -> bool:
        """Return whether a logged name is one of this metric."""
        return self._pattern.fullmatch(name) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"(?<=[/@])[A-Z]+", ".+", re.escape(self.name)))


METRICS: tuple[Metric, ...] = (
    Metric("epoch", "epoch, from 0"),
    Metric(
        "hours",
        "hours of training that led to this step, without the time between starts and steps that were made again",
        exact=False,
    ),
    Metric("train/loss", "mean loss over the known targets of the step, over all batches and ranks"),
    Metric(
        "train/loss/LABEL",
        "mean loss of a label over its known targets of the step, before `loss.label_weights`; absent without one",
        "classification",
    ),
    Metric("train/lr", "highest learning rate"),
    Metric("train/lr/MODALITY", "highest learning rate of an encoder", "an encoder that is trained"),
    Metric("train/gradient_norm", "norm of the gradient before clipping"),
    Metric(
        "train/gradient_norm/PART",
        "norm of the gradients of one part: `text`, `image` or `audio` (encoders), `fusion` (projections too), `heads`",
        "a part that is trained; not with `strategy.offload_optimizer`",
    ),
    Metric("train/group_weight/GROUP", "weight of a group", "`loss.group_dro`"),
    Metric("train/skipped_steps", "steps skipped so far, because their gradient was not finite"),
    Metric("train/quarantined_items", "items that could not be decoded so far", exact=False),
    Metric("train/padding/tokens", "share of the step's tokens that are padding", "text"),
    Metric("train/padding/windows", "share of the step's seconds of audio that are padding", "audio"),
    Metric("train/tflops", "10^12 floating-point operations for each rank and second", "CUDA", exact=False),
    Metric("train/mfu", "their share of what the device can do at most", "CUDA, a known GPU", exact=False),
    Metric("speed/step_seconds", "seconds of an optimizer step", exact=False),
    Metric("speed/items", "items a second", exact=False),
    Metric("speed/tokens", "tokens a second, without padding", "text that is not in the token cache", exact=False),
    Metric("speed/images", "images a second", "images", exact=False),
    Metric("speed/audio_seconds", "seconds of audio a second, without padding", "audio", exact=False),
    Metric("ranks/data_wait", "share of the time that the rank which waited longest waited for data", exact=False),
    Metric("ranks/step_seconds_min", "seconds of the fastest rank's own part of a step (loading, forward)", "ranks", exact=False),
    Metric("ranks/step_seconds_median", "their median over ranks", "ranks", exact=False),
    Metric("ranks/step_seconds_max", "those of the slowest rank", "ranks", exact=False),
    Metric("ranks/slowest_rank", "number of the slowest rank", "ranks", exact=False),
    Metric("system/cpu", "share of the cores of a machine that are busy, mean over ranks", "Linux", exact=False),
    Metric("system/memory_gb", "resident memory of the largest training process, 10^9 bytes", "Linux", exact=False),
    Metric("system/gpu", "share of the time in which the GPU was busy, mean over ranks", "CUDA, NVML", exact=False),
    Metric("system/gpu_memory_gb", "most memory that a rank's tensors have taken, 10^9 bytes", "CUDA", exact=False),
    Metric("validation/loss", "mean loss over the known targets of the validation split", "classification"),
    Metric("validation/macro_ap", "mean of the labels' average precisions", "classification"),
    Metric("validation/macro_auroc", "mean of the labels' AUROCs", "classification"),
    Metric("validation/ap/LABEL", "average precision; absent without a positive and a negative", "classification"),
    Metric("validation/auroc/LABEL", "AUROC; absent without a positive and a negative", "classification"),
    Metric("validation/recall@K", "mean recall of retrieval among the K nearest items", "contrastive pre-training"),
    Metric("validation/recall@K/PAIR", "recall of a pair of modalities, such as `text-image`", "contrastive pre-training"),
)
"""All metrics. Those of training are logged at the first optimizer step and every 10th; those of validation when it ends."""


def is_exact(name: str) -> bool:
    """Return whether a repeated or resumed training has the same values of a metric; see :class:`Metric`.

    Raises:
        KeyError: if it is not one of :data:`METRICS`.
    """
    for metric in METRICS:
        if metric.matches(name):
            return metric.exact
    raise KeyError(name)
