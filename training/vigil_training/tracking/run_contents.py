"""What a tracked run holds besides its metrics: configuration, and files that say from what the model was made."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.dataset.dataset import Dataset
from vigil_data.filesystem import write_file, write_json
from vigil_data.loading.location import is_remote
from vigil_training.runs.run import Run
from vigil_training.tracking.content import ContentRule

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("vigil.track")

MAX_CARD_ITEMS = 10_000
"""Items of the largest dataset whose card is made if its folder has none, which takes about a second."""


def default_group(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the group of a run whose recipe names none: the Slurm array job in which it is trained."""
    job = environment.get("SLURM_ARRAY_JOB_ID")
    return None if job is None else f"slurm-{job}"


def describe_run(run: Run, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a tracked run: recipe, taxonomy, dataset, environment, preflight included."""
    recipe = run.recipe
    return {
        "recipe": recipe.model_dump(mode="json"),
        "taxonomy": {"name": recipe.taxonomy.name, "version": recipe.taxonomy.version},
        "dataset": {"name": Path(recipe.data.dataset).name, **environment.get("dataset", {})},
        "environment": dict(environment),
    }


def add_files(tracked: "wandb.Run", run: Run, environment: Mapping[str, Any]) -> None:
    """Add the resolved recipe, the environment and the dataset's card to the files of a tracked run.

    And the difference of the code, if the content rule allows it. W&B adds the installed packages as ``requirements.txt``.

    Args:
        tracked: the tracked run.
        run: the run.
        environment: content of ``environment.json``.
    """
    folder = Path(tracked.dir)
    write_file(folder / run.resolved.name, run.resolved.read_text(encoding="utf-8"))
    write_json(folder / run.environment.name, dict(environment))
    if run.code_diff.is_file() and ContentRule(run.recipe.tracking.content).sends_diff:
        write_file(folder / run.code_diff.name, run.code_diff.read_text(encoding="utf-8"))
    if (card := _dataset_card(run, environment)) is not None:
        write_file(folder / "dataset-card.md", card)


def _dataset_card(run: Run, environment: Mapping[str, Any]) -> str | None:
    """Return the card of the dataset: the one in its folder, or one that is made if the dataset is small."""
    path = run.recipe.data.dataset
    if is_remote(path):
        return None
    written = Path(path) / "README.md"
    if written.is_file():
        return written.read_text(encoding="utf-8")
    from vigil_data.card.collect import dataset_facts
    from vigil_data.card.markdown import markdown_card
    from vigil_data.card.statements import read_statements

    try:
        dataset = Dataset(Path(path), environment["dataset"]["version"])
        if len(dataset) > MAX_CARD_ITEMS:
            return None
        statements = read_statements(Path(path))
        return markdown_card(dataset_facts(dataset, statements=statements, taxonomy=run.recipe.taxonomy), statements)
    except Exception as error:  # The card is worth less than the run.
        log.warning("%s: no card (%s: %s)", path, type(error).__name__, error)
        return None
