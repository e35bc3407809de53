"""The sweep folder: what it holds, and how it is opened, resumed and read.

Example:
    >>> folder = SweepFolder("sweeps/comments")
    >>> [trial.number for trial in folder.read().trials if trial.ended]
    [0, 1, 2]
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, make_folder, replaced_file, write_file
from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
from vigil_training.runs.run import differences
from vigil_training.sweeps.event_log import EventLog
from vigil_training.sweeps.sweep_file import SweepPlan, read_sweep

if TYPE_CHECKING:
    import optuna

    from vigil_training.sweeps.storage import SweepStorage

CHANGEABLE = ("trials", "retries", "stale_after")
"""Keys that may change between two starts of a sweep."""


class SweepFolder:
    """The layout of a sweep folder.

    Args:
        path: the folder; ``docs/sweeps.md`` lists its files.

    Raises:
        UserError: if it is not a sweep folder.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        if not self.file.is_file():
            raise UserError(f"{self.path}: not a sweep folder: it has no sweep.yaml; `vigil sweep run` makes one")

    @property
    def file(self) -> Path:
        """The sweep with every default."""
        return self.path / "sweep.yaml"

    @property
    def recipe(self) -> Path:
        """The resolved recipe without a point."""
        return self.path / "recipe.yaml"

    def run_folder(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.path / "trials" / f"{number:04}"

    def log_file(self, number: int) -> Path:
        """Return the file with the output of a trial's process."""
        return self.path / "logs" / f"{number:04}.log"

    @cached_property
    def plan(self) -> SweepPlan:
        """The sweep and its recipe."""
        return read_sweep(self.file, check_points=False)

    def read(self) -> EventLog:
        """Read the events of all workers."""
        log = EventLog(self.path)
        log.read()
        log.read_claims()
        return log

    def storage(self) -> "SweepStorage":
        """Return Optuna's storage of the sweep, which nothing has been read from or written to."""
        from vigil_training.sweeps.storage import SweepStorage

        directions = [metric.sense for metric in self.plan.spec.metric]
        return SweepStorage(EventLog(self.path), self.plan.spec.name, directions, self.plan.trials)

    def study(self, storage: "SweepStorage | None" = None, **options: Any) -> "optuna.Study":
        """Return the sweep as Optuna's study.

        Args:
            storage: from :meth:`storage` (default: a new one).
            options: sampler and pruner, as for :func:`optuna.load_study`.
        """
        import optuna

        return optuna.load_study(study_name=self.plan.spec.name, storage=storage or self.storage(), **options)


def open_sweep(plan: SweepPlan, path: StrPath) -> SweepFolder:
    """Make the folder of a sweep, or open it to continue the same sweep.

    Args:
        plan: the sweep.
        path: absent, empty, or a sweep folder of the same sweep; number of trials, retries and stale_after may differ.

    Raises:
        UserError: if the folder holds something else, or another sweep.
    """
    path = Path(path)
    if (path / "sweep.yaml").is_file():
        _check_same(plan, SweepFolder(path))
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: not a sweep folder and not empty; name another with --to")
    make_folder(path)
    values = plan.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    if plan.recipe is not None:
        values["recipe"] = "recipe.yaml"
        write_file(path / "recipe.yaml", dump_recipe(resolve_recipe(plan.recipe)))
    yaml = YAML()
    yaml.width = 2**16
    yaml.default_flow_style = None
    with replaced_file(path / "sweep.yaml") as partial:
        yaml.dump(values, partial)
    return SweepFolder(path)


def _check_same(plan: SweepPlan, folder: SweepFolder) -> None:
    left, right = (
        {key: value for key, value in each.spec.model_dump(mode="json").items() if key not in (*CHANGEABLE, "recipe")}
        for each in (folder.plan, plan)
    )
    left_recipe, right_recipe = (
        {} if each.recipe is None else each.recipe.model_dump(mode="json") for each in (folder.plan, plan)
    )
    changed = [(key, old, new) for key, old, new in differences(left, right)]
    changed += [(f"recipe: {key}", old, new) for key, old, new in differences(left_recipe, right_recipe)]
    if changed:
        raise UserError(
            f"{folder.path}: holds another sweep; name another folder with --to, or undo these:",
            *(f"{key}: the folder has {old}, the sweep {new}" for key, old, new in changed),
        )
