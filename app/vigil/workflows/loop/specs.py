"""Keys of a loop's YAML file."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vigil_data.reviews.rules import DEFAULT_RULES, Rule, check_rules
from vigil_data.specs import Spec
from vigil_data.yaml_files.read_spec import read_spec

FilePath = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class Sample(Spec):
    """Probability sample for prevalence, online metrics and drift of calibration.

    Attributes:
        design: design of `vigil monitor sample`: a name or a file.
        budget: items to review.
    """

    design: str = "prevalence"
    budget: Count = 500


class Mine(Spec):
    """Items that are worth a label.

    Attributes:
        strategy: file of shares for `vigil monitor mine` (default: its own).
        budget: items to review.
    """

    strategy: str | None = None
    budget: Count = 200


class Merge(Spec):
    """How answers become targets; see `vigil data merge-labels`.

    Attributes:
        rules: rules for several answers about a label of an item.
        on_conflict: what happens to known targets that reviewers contradict.
        soft: targets are means of votes.
    """

    rules: tuple[Rule, ...] = DEFAULT_RULES
    on_conflict: Literal["fail", "keep", "replace"] = "replace"
    soft: bool = False

    @model_validator(mode="after")
    def _known_rules(self) -> "Merge":
        check_rules(self.rules)
        return self


class Retrain(Spec):
    """Training of the challenger.

    Attributes:
        recipe: its recipe.
        warm_start: whether it starts from the champion's weights (``init_from``).
        overrides: values that replace the recipe's, ``KEY.PATH=VALUE``.
    """

    recipe: FilePath
    warm_start: bool = True
    overrides: tuple[str, ...] = ()


class Compare(Spec):
    """Arguments of `vigil compare`; the dataset is the loop's.

    Attributes:
        split: split whose items are compared.
        tolerance: accepted losses, ``X`` or ``METRIC=X``.
        metrics: compared metrics, separated by commas (default: those of `vigil compare`).
        require: the gate.
    """

    split: str = "test"
    tolerance: tuple[str, ...] = ()
    metrics: str | None = None
    require: Literal["no-regression", "non-inferiority"] = "no-regression"


class Promote(Spec):
    """What happens to a challenger that passes.

    Attributes:
        automatic: promote it; otherwise the iteration ends with the command to do so.
        experiment: result file of `vigil monitor experiment` that must say promote (default: promoted without an experiment).
    """

    automatic: bool = False
    experiment: FilePath | None = None


class Slurm(Spec):
    """How the challenger's training is submitted.

    Attributes:
        profile: site profile (default: $VIGIL_SITE).
        time: time limit.
        nodes: nodes.
        gpus_per_node: ranks on each node.
    """

    profile: str | None = None
    time: str | None = None
    nodes: Count | None = None
    gpus_per_node: Count | None = None


class Loop(Spec):
    """A loop.

    Attributes:
        name: name of the loop, for the history of the dataset.
        folder: folder of the iterations, 0001, 0002, …, and of the results of all.
        traffic: traffic log of the champion.
        dataset: dataset with the content of the traffic; answers become its targets.
        models: folder of the models' aliases; ``models/champion`` is the bundle in use.
        days: days of traffic that an iteration looks at.
        first: first day of the first iteration (default: it ends with the newest complete day).
        sample: sample for estimates; null for none.
        mine: items that are worth a label; null for none.
        answered: share of the queues' questions that must be answered before the loop goes on.
        cluster: column of the units of estimates, such as author.
        by: columns to slice estimates and drift by, separated by commas.
        reference: reference of drift (see `vigil monitor drift`); null for none.
        merge: how answers become targets.
        retrain: training of the challenger; null stops after the estimates.
        policy: policy that is compiled for the challenger (default: none).
        compare: gate between champion and challenger.
        promote: what happens to a challenger that passes.
        slurm: submits the training to Slurm (default: trains on this machine).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    folder: FilePath
    traffic: FilePath
    dataset: FilePath
    models: FilePath = "models"
    days: Count = 7
    first: date | None = None
    sample: Sample | None = Sample()
    mine: Mine | None = Mine()
    answered: Annotated[float, Field(gt=0, le=1)] = 0.95
    cluster: str | None = None
    by: str | None = None
    reference: str | None = None
    merge: Merge = Merge()
    retrain: Retrain | None
    policy: FilePath | None = None
    compare: Compare = Compare()
    promote: Promote = Promote()
    slurm: Slurm | None = None

    @model_validator(mode="after")
    def _has_work(self) -> "Loop":
        if self.sample is None and self.mine is None:
            raise ValueError("sample and mine are both null: nothing would be reviewed")
        if self.slurm is not None and self.retrain is None:
            raise ValueError("slurm: needs retrain, which is null")
        return self


def read_loop(file: Path) -> Loop:
    """Read a loop's file.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake.
    """
    return read_spec(Loop, file, "loop", "name: my-loop")
