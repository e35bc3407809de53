"""Export a run as a bundle: its model, decision settings and lineage, compared on real items of its validation split."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sha256_file
from vigil_data.items import MODALITIES, Item
from vigil_data.lineage import Input, Node, record
from vigil_data.progress import ProgressCallback
from vigil_serving.bundle.manifest import check_target
from vigil_serving.specs import OPSETS, ExportSpec, Format

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from vigil_serving.bundle.load import Bundle
    from vigil_serving.bundle.metadata import Licence
    from vigil_serving.export.publish import Provenance
    from vigil_serving.export.step_cache import StepReport
    from vigil_training.runs.run import Run


class RealItems(NamedTuple):
    """Real items of the run's validation split.

    Attributes:
        examples: items on which every format is compared.
        measure: further items on which quantization is measured.
        calibration: items on which quantization finds ranges.
    """

    examples: list[Item]
    measure: list[Item]
    calibration: list[Item]


def export_run(
    run: "Run",
    to: StrPath,
    *,
    formats: Sequence[str] | None = None,
    opset: int | None = None,
    examples: int | None = None,
    checkpoint: str = "best",
    restart: bool = False,
    sign: StrPath | None = None,
    promote: StrPath | None = None,
    data: StrPath | None = None,
    split: str = "test",
    progress: ProgressCallback | None = None,
    report: "StepReport | None" = None,
) -> "Bundle":
    """Export a run as a bundle whose formats all make the decisions of the trained model, or fail.

    Args:
        run: a finished run.
        to: the bundle's folder; an older bundle there is replaced.
        formats: formats of the bundle (default: the recipe's).
        opset: ONNX opset (default: the recipe's).
        examples: validation items on which the formats are compared (default: the recipe's).
        checkpoint: ``best``, ``last`` or a path.
        restart: discard what an interrupted export left.
        sign: PEM file of the ed25519 private key that signs the bundle.
        promote: run, bundle or table of scores that this run replaces; the run must not be a regression from it.
        data: dataset of that comparison (default: the run's).
        split: split of that comparison.
        progress: called with (task, done, total).
        report: called with each finished step and its seconds, or ``None`` if it was kept from an interrupted export.

    Raises:
        UserError: if the run is unfinished, an option is wrong, or ``to`` is occupied.
        RegressionError: if the run is a regression from ``promote``.
        ParityError: if a format decides differently from the trained model; nothing is written.
    """
    # Wrong options and keys are found before torch is imported and the work begins.
    thresholds, calibrated, policy = run.read_thresholds(), run.read_calibrated(), run.current_policy()
    spec = override_export_spec(run.recipe.export, formats=formats, opset=opset, examples=examples)
    spec = spec.for_model(guard=run.recipe.model.kind == "guard")
    check_target(Path(to))
    signer = None if sign is None else signer_of(sign)
    comparison = None
    if promote is not None:
        if checkpoint != "best":
            raise UserError(f"checkpoint {checkpoint}: a promotion compares the best checkpoint; leave it out to export that one")
        comparison = _compare(run, promote, data, split, progress=progress, report=report)
    elif data is not None:
        raise UserError(f"data {data}: is used only with a promotion, which compares the run with the model that it replaces")

    from vigil_serving.export.pipeline import export_model
    from vigil_training.runs.lineage import record_checkpoint

    if progress is not None:
        progress("loading the trained model", 0, None)
    model = run.model(checkpoint)
    real = sample_real_items(run, spec)
    weights = record_checkpoint(run, run.checkpoint(checkpoint))
    bundle = export_model(
        model,
        run.recipe.inputs,
        run.recipe.taxonomy,
        thresholds,
        real.examples,
        to=to,
        provenance=provenance_of(run, checkpoint, comparison),
        spec=spec,
        measure=real.measure,
        calibration=real.calibration,
        calibrated=calibrated,
        policy=policy,
        progress=progress,
        report=report,
        restart=restart,
        sign=signer,
    )
    record_bundle(run, weights, bundle, graphs=sorted(bundle.graphs))
    return bundle


def record_bundle(run: "Run", weights: Node, bundle: "Bundle", **facts: Any) -> None:
    """Record that a run was exported as a bundle.

    Args:
        run: the run.
        weights: the checkpoint.
        bundle: the bundle.
        facts: further facts.
    """
    from vigil_training.runs.run import recipe_digest

    path = bundle.path.resolve()
    compiled = [] if bundle.policy is None else [Input("policy", sha256_file(run.policy), "policy", path=str(run.policy))]
    node = Node("bundle", bundle.digest, path.name, str(path), {**facts, "recipe_digest": recipe_digest(run.recipe)})
    record(node, [weights.as_input("weights"), *compiled])


def override_export_spec(
    spec: ExportSpec, *, formats: Sequence[str] | None = None, opset: int | None = None, examples: int | None = None
) -> ExportSpec:
    """Return a recipe's export section with the given values in place of its own.

    Raises:
        UserError: if a format or opset is not supported.
    """
    given: dict[str, Any] = {}
    if formats is not None:
        for name in formats:
            if name == "onnx-bf16":
                raise UserError("formats: onnx-bf16: ONNX Runtime has no bfloat16 products on the CPU; use bf16 (torch.export)")
            if name not in get_args(Format):
                raise UserError(f"formats: {name} is not a format; known are {', '.join(get_args(Format))}")
        given["formats"] = list(formats)
    if opset is not None:
        lowest, highest = OPSETS
        if not lowest <= opset <= highest:
            raise UserError(f"opset: {opset} is not supported; use {lowest} to {highest}")
        given["opset"] = opset
    if examples is not None:
        given["examples"] = examples
    return ExportSpec.model_validate({**spec.model_dump(mode="json"), **given})


def sample_real_items(run: "Run", spec: ExportSpec) -> RealItems:
    """Sample real items, each kind spread over the validation split and no item in two kinds.

    If the split is too small for all kinds, each gets its share of it.
    """
    import numpy as np

    rows = run.dataset().rows(run.recipe.data.validation)
    int8 = spec.has("int8")
    wanted = (spec.examples, spec.int8.examples * int8, spec.int8.calibration_items * int8)
    rows = rows[_spread(len(rows), min(sum(wanted), len(rows)))]
    kinds = []
    for place, count in enumerate(wanted):
        share = min(-(-len(rows) * count // max(sum(wanted[place:]), 1)), len(rows))
        chosen = _spread(len(rows), share)
        kinds.append(_decodable(run, rows[chosen]) if share else [])
        rows = np.delete(rows, chosen)
    return RealItems(*kinds)


def _spread(length: int, count: int) -> "NDArray[np.int64]":
    """Return ``count`` evenly spaced indices below ``length``."""
    import numpy as np

    return np.unique(np.linspace(0, length - 1, count).astype(np.int64))


def _decodable(run: "Run", rows: "NDArray[np.int64]") -> list[Item]:
    from vigil_data.decode import Decoder, Undecodable

    decoder, items = Decoder(run.recipe.inputs, ()), []
    for item in run.dataset().take(rows):
        try:
            decoder.decode(item)
        except Undecodable:
            continue
        items.append(item)
    return items


def signer_of(key: StrPath) -> "Callable[[Path], None]":
    """Load the key, and return a function that signs a bundle."""
    from vigil_serving.bundle.signing import load_private_key, sign_bundle

    loaded = load_private_key(key)
    return lambda folder: sign_bundle(folder, loaded)


def _compare(
    run: "Run",
    champion: StrPath,
    data: StrPath | None,
    split: str,
    *,
    progress: ProgressCallback | None,
    report: "StepReport | None",
) -> dict[str, Any]:
    from vigil.workflows.release_gate import check_release, without_items

    start = time.perf_counter()
    comparison = check_release(run, champion, data=data, split=split, progress=progress)
    if report is not None:
        line = f"passes against {champion}: {comparison.compared} comparisons on {comparison.alignment.items} items"
        report(line, time.perf_counter() - start)
    return without_items(comparison)


def provenance_of(run: "Run", checkpoint: str, comparison: Mapping[str, Any] | None = None) -> "Provenance":
    """Return the origin of a run's model: lineage, licences, recipe and evaluations."""
    from vigil_serving.export.publish import Provenance
    from vigil_training.runs.run import recipe_digest

    recipe, environment = run.recipe, run.read_environment()
    lineage: dict[str, Any] = {
        "run": str(run.path),
        "run_id": run.run_id,
        "checkpoint": checkpoint,
        "recipe": recipe_digest(recipe),
        **{name: environment[name] for name in ("dataset", "git") if name in environment},
    }
    if recipe.tracking.mode != "disabled":
        lineage["wandb"] = {"project": recipe.tracking.project, "entity": recipe.tracking.entity}
    metrics = sorted(run.path.glob("evaluation/*/metrics.json"))
    return Provenance(
        name=recipe.name,
        lineage=lineage,
        licences=licences_of(run),
        recipe=run.resolved.read_text(encoding="utf-8"),
        evaluation={path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in metrics},
        comparison=comparison,
    )


def licences_of(run: "Run") -> "dict[str, Licence]":
    """Return the licences of the weights that training started from, and of the tokenizer."""
    from vigil_serving.bundle.licences import licences

    recipe = run.recipe
    encoders = {m: encoder for m in MODALITIES if (encoder := getattr(recipe.model.encoders, m)) is not None}
    sources: dict[str, Any] = {m: encoder.weights for m, encoder in encoders.items() if encoder.weights.kind != "random"}
    if recipe.inputs.text is not None:
        sources["tokenizer"] = recipe.inputs.text.tokenizer
    return licences(sources, {str(part): name for part, name in recipe.export.licences.items()})
