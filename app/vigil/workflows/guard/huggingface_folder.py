"""Export a guard's run as a folder in Hugging Face's layout."""

from pathlib import Path
from typing import TYPE_CHECKING

from vigil.workflows.export_run import override_export_spec, provenance_of, record_bundle, sample_real_items, signer_of
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback
from vigil_serving.bundle.manifest import check_target

if TYPE_CHECKING:
    from vigil_serving.huggingface.export import DType, GuardFolder
    from vigil_training.runs.run import Run

EXAMPLES = 16
"""Real items on which the folder is compared: each prompt runs alone, so they take much longer than in `vigil export`."""


def export_guard_folder(
    run: "Run",
    to: StrPath,
    *,
    dtype: "DType" = "fp32",
    text_only: bool = False,
    examples: int = EXAMPLES,
    checkpoint: str = "best",
    sign: StrPath | None = None,
    progress: ProgressCallback | None = None,
) -> "GuardFolder":
    """Export a guard's run as a folder that transformers, vLLM and others load, or fail if it decides otherwise.

    Args:
        run: a finished run of a guard.
        to: the folder; an older one there is replaced.
        dtype: type of the weights.
        text_only: export a guard that also reads pictures or sound without them.
        examples: items of the validation split on which the folder is compared.
        checkpoint: ``best``, ``last`` or a path.
        sign: PEM file of the ed25519 private key that signs the folder.
        progress: called with (task, done, total).

    Raises:
        UserError: if the run is unfinished or no guard, the folder cannot hold it, or ``to`` is occupied.
        ParityError: if the folder decides otherwise than the trained guard; nothing is written.
    """
    from vigil_modeling.specs import GuardSpec

    recipe = run.recipe
    if not isinstance(recipe.model, GuardSpec):
        raise UserError(f"{run.path}: not a run of a guard; export it with `vigil export`")
    thresholds, calibrated, policy = run.read_thresholds(), run.read_calibrated(), run.current_policy()
    check_target(Path(to))
    signer = None if sign is None else signer_of(sign)

    from vigil_modeling.guards.guard_model import GuardModel
    from vigil_serving.huggingface.export import export_guard
    from vigil_training.runs.lineage import record_checkpoint

    if progress is not None:
        progress("loading the trained guard", 0, None)
    model = run.model(checkpoint)
    assert isinstance(model, GuardModel)
    spec = override_export_spec(recipe.export, formats=[], examples=examples)
    weights = record_checkpoint(run, run.checkpoint(checkpoint))
    written = export_guard(
        model,
        recipe.model,
        recipe.inputs,
        recipe.taxonomy,
        thresholds=thresholds,
        examples=sample_real_items(run, spec).examples,
        to=to,
        provenance=provenance_of(run, checkpoint),
        dtype=dtype,
        text_only=text_only,
        calibrated=calibrated,
        policy=policy,
        progress=progress,
        sign=signer,
    )
    record_bundle(run, weights, written.bundle, layout="Hugging Face", dtype=dtype)
    return written
