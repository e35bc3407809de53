"""`vigil evaluate` and `vigil calibrate`: metrics of a run on a split or of any table of scores, and a run's calibration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vigil.workflows.evaluate import Evaluation
    from vigil_evaluation.policy.impact import PolicyImpact
    from vigil_evaluation.results import EvaluationResults
    from vigil_evaluation.specs import EvaluationSpec

Data = Annotated[Path | None, typer.Option(help="The dataset (default: the run's own).", metavar="DATASET")]
Checkpoint = Annotated[str, typer.Option(help="best, last, or the path of a checkpoint.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("evaluate")(evaluate)
    app.command("calibrate")(calibrate)


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="The run folder, or a bundle.", metavar="RUN")] = None,
    *,
    data: Data = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    checkpoint: Checkpoint = "best",
    only: Annotated[str, typer.Option(help="Modalities that the model sees, such as text,image (default: all).")] = "",
    predictions: Annotated[
        Path | None, typer.Option(help="Instead of a run: a table of any model's scores.", metavar="FILE.parquet")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The output folder (default: RUN/evaluation/SPLIT).", metavar="DIR")] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Compiled policy, or a run or bundle that has one: its actions, and its constraints measured again "
            "(default: the run's).",
            metavar="POLICY.json",
        ),
    ] = None,
    calibrate_on: Annotated[
        Path | None,
        typer.Option(
            help="With --predictions: scores of other, labelled items, to calibrate and choose thresholds on, and to test for "
            "drift against.",
            metavar="FILE",
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help="With --predictions: threshold of a label (default: chosen on --calibrate-on, or 0.5).", metavar="LABEL=P"
        ),
    ] = None,
    policy_text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With the bundle of a guard: policy texts in place of the bundle's, as a taxonomy (.yaml) or policy_text.json.",
        ),
    ] = None,
    calibrate_split: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="With --policy-text: split on which labels with a new text are calibrated."),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Settings: YAML with the keys of a recipe's `evaluation` block.", metavar="FILE.yaml")
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="Additional column to slice by.", metavar="COLUMN")] = None,
    identity: Annotated[
        list[str] | None,
        typer.Option(help="Additional column that names the group an item is about.", metavar="COLUMN"),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Column of the units that are resampled together, such as author.", metavar="COLUMN")
    ] = None,
    replicates: Annotated[int | None, typer.Option(min=0, help="Bootstrap replicates; 0 for no intervals.")] = None,
) -> None:
    """Evaluate a run or bundle on a split, or any model's scores: metrics with intervals, slices, fairness, and an HTML report.

    A table of scores has the columns id, probability.LABEL, target.LABEL (null where unknown), and any others to slice by.
    Without targets, such as in the table of `vigil score`, it gives volumes, actions (--policy) and drift (--calibrate-on).
    A guard's bundle is evaluated under other policy texts with --policy-text; policy_text.json in the output folder records it.
    """
    from vigil_data.errors import UserError
    from vigil_serving.bundle.manifest import is_bundle

    asked = {"slices": by, "identities": identity, "cluster": cluster, "replicates": replicates}
    if (run is None) == (predictions is None):
        raise UserError("name a run folder, or a table of scores with --predictions, and not both")
    if calibrate_split is not None and policy_text is None:
        raise UserError(f"--calibrate-split {calibrate_split}: only with --policy-text; other labels keep their calibration")
    if run is not None and is_bundle(run):
        if wrong := [n for n, v in {"--only": only, "--checkpoint": checkpoint != "best"}.items() if v]:
            raise UserError(f"{', '.join(wrong)}: only with a run; {run} is a bundle")
        if to is None:
            raise UserError(f"{run} is a bundle, to which nothing is added: name the output folder with --to DIR")
    elif policy_text is not None:
        raise UserError(f"--policy-text {policy_text}: only with the bundle of a guard; make one with `vigil export`")
    if predictions is not None:
        if to is None:
            raise UserError("--predictions: name the output folder with --to DIR")
        spec = evaluation_settings(None, settings, asked)
        _evaluate_table(predictions, spec, to=to, calibrate_on=calibrate_on, threshold=threshold or [], policy=policy)
        return
    if wrong := [n for n, v in {"--calibrate-on": calibrate_on, "--threshold": threshold}.items() if v is not None]:
        raise UserError(f"{', '.join(wrong)}: only with --predictions; a run has its own calibration and thresholds")
    assert run is not None
    if is_bundle(run):
        assert to is not None
        spec = evaluation_settings(None, settings, asked)
        _evaluate_bundle(
            run, spec, data=data, split=split, to=to, policy=policy, policy_text=policy_text, calibrate_split=calibrate_split
        )
        return
    _evaluate_run(
        run, data=data, split=split, checkpoint=checkpoint, only=only, settings=settings, asked=asked, to=to, policy=policy
    )


def calibrate(
    run: Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")],
    *,
    data: Data = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset (default: the recipe's validation split).")] = None,
    checkpoint: Checkpoint = "best",
    by: Annotated[
        str | None, typer.Option(help="presence, or a column; each of its values gets its own calibrator.", metavar="COLUMN")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Candidates: temperature, platt, beta, isotonic.", metavar="A,B")] = None,
) -> None:
    """Recalibrate a finished run on another split or with other methods, and choose its thresholds again.

    Training does this once, on the validation split. Evaluate, compile the policy and export again afterwards.
    """
    from vigil_data.yaml_files.read_spec import read_spec
    from vigil_evaluation.specs import CalibrationSpec
    from vigil_training.runs.run import Run

    opened = Run(run)
    opened.read_thresholds()
    own = opened.recipe.evaluation.calibration.model_dump(mode="json")
    asked = {"by": by, "methods": None if methods is None else [m.strip() for m in methods.split(",") if m.strip()]}
    spec = read_spec(
        CalibrationSpec, None, "calibration", "by: language", {**own, **{k: v for k, v in asked.items() if v is not None}}
    )

    from vigil_data.dataset.dataset import Dataset
    from vigil_data.progress import Progress
    from vigil_training.runs.calibrate import recalibrate

    task = f"predicting {split or opened.recipe.data.validation}"
    with Progress(task) as progress:
        dataset = Dataset(data) if data is not None else None
        items = recalibrate(opened, spec, dataset, split, checkpoint=checkpoint, progress=progress)
    _show_calibration(opened.path, items)


def _evaluate_run(
    run: Path,
    *,
    data: Path | None,
    split: str,
    checkpoint: str,
    only: str,
    settings: Path | None,
    asked: dict[str, Any],
    to: Path | None,
    policy: Path | None,
) -> None:
    from vigil_data.errors import UserError
    from vigil_data.items import MODALITIES, Modality

    modalities = [name.strip() for name in only.split(",") if name.strip()]
    if wrong := [name for name in modalities if name not in MODALITIES]:
        raise UserError(f"--only {only}: {', '.join(wrong)} is not a modality; the modalities are {', '.join(MODALITIES)}")

    from vigil_training.runs.run import Run

    opened = Run(run)
    spec = evaluation_settings(opened.recipe.evaluation, settings, asked)

    from vigil.workflows.evaluate import evaluate as evaluate_run
    from vigil.workflows.policies import read_compiled_policy
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.progress import Progress
    from vigil_training.tracking.evaluations.tracked_evaluation import track_evaluation

    with Progress(f"predicting {split}") as progress:
        evaluation = evaluate_run(
            opened,
            Dataset(data) if data is not None else None,
            split,
            checkpoint=checkpoint,
            only=cast("list[Modality]", modalities),
            spec=spec,
            to=to,
            policy=None if policy is None else read_compiled_policy(policy),
            progress=progress,
        )
        progress("tracking")
        track_evaluation(
            opened,
            evaluation.folder,
            evaluation.results,
            evaluation.data,
            contents=evaluation.contents,
            dataset=evaluation.dataset,
        )
    _show(evaluation)


def _evaluate_bundle(
    bundle: Path,
    spec: "EvaluationSpec",
    *,
    data: Path | None,
    split: str,
    to: Path,
    policy: Path | None,
    policy_text: Path | None,
    calibrate_split: str | None,
) -> None:
    from vigil.workflows.evaluate import evaluate_bundle
    from vigil.workflows.policies import read_compiled_policy
    from vigil.workflows.prediction_sources import bundle_dataset
    from vigil_data.progress import Progress

    with Progress(f"predicting {split}") as progress:
        evaluation = evaluate_bundle(
            bundle,
            bundle_dataset(bundle, data),
            split,
            to=to,
            spec=spec,
            policy_text=policy_text,
            calibrate_split=calibrate_split,
            policy=None if policy is None else read_compiled_policy(policy),
            progress=progress,
        )
    _show(evaluation)
    if policy_text is not None:
        typer.echo(f"policy texts with what was measured: {to / 'policy_text.json'}; score and serve with it")


def _evaluate_table(
    file: Path, spec: "EvaluationSpec", *, to: Path, calibrate_on: Path | None, threshold: list[str], policy: Path | None
) -> None:
    from vigil.workflows.evaluate import evaluate_table
    from vigil.workflows.policies import read_compiled_policy
    from vigil_data.progress import Progress
    from vigil_evaluation.predictions import read_predictions

    thresholds = parse_thresholds(threshold)
    table = read_predictions(file)
    other = read_predictions(calibrate_on) if calibrate_on is not None else None
    compiled = read_compiled_policy(policy) if policy is not None else None
    with Progress(f"evaluating {file.name}") as progress:
        evaluation = evaluate_table(
            table, str(file), spec, to=to, calibrate_on=other, thresholds=thresholds, policy=compiled, progress=progress
        )
    _show(evaluation)


def evaluation_settings(own: "EvaluationSpec | None", settings: Path | None, asked: dict[str, Any]) -> "EvaluationSpec":
    """Return the recipe's settings, or those of a file, with the options of the command line added."""
    from vigil_data.yaml_files.read_spec import read_spec
    from vigil_evaluation.specs import EvaluationSpec

    if settings is not None:
        own = read_spec(EvaluationSpec, settings, "file of evaluation settings", "slices: [language]")
    own = own or EvaluationSpec()
    added = {k: v for k, v in asked.items() if v is not None}
    for name in ("slices", "identities"):
        if name in added:
            added[name] = list(dict.fromkeys([*getattr(own, name), *added[name]]))
    return read_spec(EvaluationSpec, None, "evaluation settings", "slices: [language]", {**own.model_dump(mode="json"), **added})


def parse_thresholds(given: list[str]) -> dict[str, float]:
    """Parse LABEL=P options into label to probability.

    Raises:
        UserError: for the first that is malformed, or whose probability is outside [0, 1].
    """
    from vigil_data.errors import UserError, percent_hint

    thresholds: dict[str, float] = {}
    for text in given:
        label, _, value = text.partition("=")
        try:
            thresholds[label] = number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            hint = percent_hint(number) or ", such as hate=0.7"
            raise UserError(f"--threshold {text}: write LABEL=P with a probability from 0 to 1{hint}")
    return thresholds


def _show(evaluation: "Evaluation") -> None:
    """Print a row for each label, the policy's constraints and actions, what stands out, and the path of the report.

    Labels whose labelled items are not a random sample are named on standard error.
    """
    from rich.console import Console

    from vigil_evaluation.report.summary import remarks, summary_sentences

    results, console = evaluation.results, Console()
    if results.labelled:
        console.print(_metrics_table(results))
        if results.weighted:
            console.print("items are weighted by the sampling columns; numbers of items and targets are not weighted")
    else:
        for sentence in summary_sentences(results):
            console.print(sentence, markup=False, highlight=False)
        console.print(_volumes_table(results))
    if results.policy is not None:
        _show_policy(results.policy)
    for remark in remarks(results):
        console.print(f"- {remark.text}", markup=False, highlight=False)
    _warn_of_biased_labels(results)
    if evaluation.refused:
        console.print(f"{len(evaluation.refused)} items could not be decoded and are not evaluated")
    typer.echo(f"report: {evaluation.folder / 'report.html'}")


def _warn_of_biased_labels(results: "EvaluationResults") -> None:
    lines = [] if results.label_selection is None else results.label_selection.lines
    for line in lines:
        typer.echo(f"warning: {line}", err=True)
    if lines:
        fix = "check the column inclusion_probability" if results.weighted else "add the column inclusion_probability"
        what = "warning: metrics of these labels describe the labelled items alone, and may be far from those of all items"
        typer.echo(f"{what}; {fix} (docs/metrics.md)", err=True)


def _metrics_table(results: "EvaluationResults") -> "Table":
    from rich.table import Table

    metrics = ("average_precision", "auroc", "f1", "recall_at_fpr")
    table = Table("label", box=None, pad_edge=False, header_style="bold")
    for head in ("positive of known", "AP", "AUROC", "F1", f"recall at {results.false_positive_rate:.2g} FPR", "threshold"):
        table.add_column(head, justify="right", min_width=9)
    for name, found in results.overall.labels.items():
        numbers = [_with_interval(getattr(found, metric), found.intervals.get(metric)) for metric in metrics]
        table.add_row(name, f"{found.positive:,}\nof {found.known:,}", *numbers, _number(found.threshold))
    macro = results.overall.macro
    means = [_with_interval(macro[metric].value, macro[metric].interval) for metric in metrics]
    table.add_row()
    table.add_row("mean", "", *means, "")
    return table


def _volumes_table(results: "EvaluationResults") -> "Table":
    from rich.table import Table

    volumes = results.volumes.overall
    table = Table("label", box=None, pad_edge=False, header_style="bold")
    for head in ("items", "flagged", "interval", "threshold"):
        table.add_column(head, justify="right")
    for name, share in [*volumes.labels.items(), ("any label", volumes.any_label)]:
        cut = _number(results.overall.labels[name].threshold) if name in volumes.labels else ""
        table.add_row(name, f"{volumes.items:,}", _percent(share.value), _percents(share.interval), cut)
    return table


def _show_policy(impact: "PolicyImpact") -> None:
    """Print the constraints of a policy as measured on these items, and the share of the items that gets each action."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if Console().is_terminal else Console(width=160)
    table = Table(title=Text(f"policy {impact.name} version {impact.version} on these items"), title_justify="left")
    for head in ("constraint", "on"):
        table.add_column(head, overflow="fold")
    for head in ("value", "interval", "bound", "of items", "status"):
        table.add_column(head, justify="right")
    for found in impact.constraints:
        between = None if found.low is None or found.high is None else (found.low, found.high)
        group = f" ({found.group})" if found.group is not None else ""
        numbers = (_percent(found.estimate), _percents(between), _percent(found.bound), f"{found.count:,} / {found.rows:,}")
        table.add_row(Text(f"{found.rule}{group}"), Text(found.rule.place), *numbers, found.status)
    console.print(table)
    taken = ", ".join(f"{action.action} {_percent(action.share)} ({_percents(action.interval)})" for action in impact.actions)
    for line in (f"actions: {taken}", *impact.notes):
        console.print(f"- {line}", markup=False, highlight=False)


def _show_calibration(run: Path, items: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from vigil_training.runs.run import Run

    opened = Run(run)
    calibrated, thresholds = opened.read_calibrated(), opened.read_thresholds()
    table = Table("label", "method")
    for head in ("known", "positive", "log loss before", "after", "threshold"):
        table.add_column(head, justify="right")
    for label, found in calibrated.calibration.labels.items():
        method = found.pooled.method + (f" (+ {len(found.groups)} group{'s'[: len(found.groups) != 1]})" if found.groups else "")
        before, after = (found.log_loss.get(name) for name in ("none", found.pooled.method))
        table.add_row(
            label, method, str(found.known), str(found.positive), _number(before), _number(after), _number(thresholds[label])
        )
    Console().print(table)
    typer.echo(f"calibrated on {items} items: {opened.calibration}")


def _with_interval(value: float | None, interval: "tuple[float, float] | None") -> str:
    """Return a value above its interval, to fit a terminal of 80 columns."""
    return _number(value) if interval is None else f"{_number(value)}\n{_short(interval[0])}-{_short(interval[1])}"


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _percents(interval: "tuple[float, float] | None") -> str:
    return "" if interval is None else f"{interval[0]:.1%}-{interval[1]:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
