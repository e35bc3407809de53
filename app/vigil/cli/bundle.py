"""`vigil export` and `vigil verify`: from a run to a bundle, and whether it still decides the same."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from vigil_data.items import Item
    from vigil_serving.bundle.metadata import Candidate, Parity
    from vigil_serving.specs import ExportSpec
    from vigil_training.runs.run import Run


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("export")(export)
    app.command("verify")(verify)


def export(
    run: Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")],
    to: Annotated[Path, typer.Option("--to", help="The bundle's folder; an older bundle there is replaced.", metavar="BUNDLE")],
    *,
    formats: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="onnx, onnx-single, torchscript, torch-export, fp16, bf16, int8; else the recipe's."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX; the recipe's if not given.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=0, help="Real validation items that the forms are compared on; the recipe's if not given.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an interrupted export left.")] = False,
    sign: Annotated[Path | None, typer.Option(metavar="PEM", help="Sign the bundle with this ed25519 private key.")] = None,
    triton: Annotated[
        Path | None, typer.Option(metavar="REPOSITORY", help="Write a model repository for Triton too, a new folder.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or the path of a checkpoint.")] = "best",
    promote: Annotated[
        Path | None,
        typer.Option(metavar="CHAMPION", help="Only if the run is no regression from this run, bundle or table of scores."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DATASET", help="With --promote: what both predict.")] = None,
    split: Annotated[str, typer.Option(help="With --promote: which of its splits.")] = "test",
) -> None:
    """Export a run in every form asked for, or fail if any of them decides otherwise than the trained model."""
    from vigil_serving.bundle.load import read
    from vigil_serving.bundle.manifest import refuse_occupied
    from vigil_training.runs.run import Run

    opened = Run(run)
    thresholds, calibrated, policy = opened.read_thresholds(), opened.read_calibrated(), opened.current_policy()
    spec = _spec(opened.recipe.export, formats, opset, examples)
    refuse_occupied(to)
    seal = _sealing(sign)
    if triton is not None:
        from vigil_serving.triton.repository import refuse_occupied as refuse_occupied_repository

        refuse_occupied_repository(triton)
    compared = _promoted(opened, checkpoint, promote, data, split)
    import time

    from vigil_serving.export.pipeline import export as write

    start = time.perf_counter()
    recipe = opened.recipe
    model = opened.model(checkpoint)
    _step("trained model", time.perf_counter() - start)
    real = _real(opened, spec)
    write(
        model,
        recipe.inputs,
        recipe.taxonomy,
        thresholds,
        real.examples,
        to=to,
        facts={**_facts(opened, checkpoint), **compared},
        spec=spec,
        measure=real.measure,
        calibration=real.calibration,
        calibrated=calibrated,
        policy=policy,
        progress=_step,
        restart=restart,
        seal=seal,
    )
    _step("all", time.perf_counter() - start)
    written = read(to).signature
    _show_candidates(written.candidates)
    _show_parity(written.parity)
    for form, reason in written.left_out.items():
        typer.echo(f"{form} was left out: {reason}")
    typer.echo(f"bundle: {to}")
    if triton is not None:
        from vigil_serving.triton.repository import write_repository

        write_repository(to, triton)
        typer.echo(f"repository: {triton}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    public_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Refuse the bundle if its signature is not by the holder of this key.")
    ] = None,
) -> None:
    """Refuse a bundle that was altered, or that decides otherwise here than the trained model did."""
    from rich.console import Console

    from vigil_serving.parity.verify import verify as check

    with Console(stderr=True).status("verifying") as status:
        found = check(bundle, lambda step: status.update(f"verifying: {step}"), public_key)
    _show_parity(found.parity)
    typer.echo(f"{found.files} files unaltered, sha256 of the manifest {found.digest}")
    typer.echo(f"ok  {bundle}")


def _sealing(key: Path | None) -> "Callable[[Path], None] | None":
    """What signs a bundle, its key read at once, so that a wrong one is found before the work."""
    if key is None:
        return None
    from vigil_serving.bundle.signing import load_private_key, seal

    loaded = load_private_key(key)
    return lambda folder: seal(folder, loaded)


def _promoted(run: "Run", checkpoint: str, champion: Path | None, data: Path | None, split: str) -> dict[str, Any]:
    """The comparison with what the run is to replace, as a fact of the bundle; a failure if it does not pass."""
    from vigil_data.errors import UserError

    if champion is None:
        if data is not None:
            raise UserError(f"--data {data}: goes with --promote, which compares with what the run is to replace")
        return {}
    if checkpoint != "best":
        raise UserError(f"--checkpoint {checkpoint}: --promote judges the best checkpoint; leave it out to export that one")
    from vigil.cli.compare import progress
    from vigil.workflows.release_gate import check, without_items

    with progress("comparing") as (advance, say):
        found = check(run, champion, data=data, split=split, progress=advance, say=say)
    typer.echo(f"passes against {champion}: {found.compared} comparisons on {found.alignment.items} items")
    return {"comparison": without_items(found)}


def _spec(recipe: "ExportSpec", formats: str | None, opset: int | None, examples: int | None) -> "ExportSpec":
    """The recipe's export, with what the options say in its place."""
    from typing import get_args

    from vigil_data.errors import UserError
    from vigil_serving.specs import OPSETS, ExportSpec, Format

    given: dict[str, Any] = {}
    if formats is not None:
        names = [name.strip() for name in formats.split(",") if name.strip()]
        for name in names:
            if name == "onnx-bf16":
                raise UserError(
                    "--formats onnx-bf16: ONNX Runtime has no bfloat16 products on the CPU; name bf16, by torch.export"
                )
            if name not in get_args(Format):
                raise UserError(f"--formats {name}: not a form; known are {', '.join(get_args(Format))}")
        given["formats"] = names
    if opset is not None:
        least, most = OPSETS
        if not least <= opset <= most:
            raise UserError(f"--opset {opset}: torch writes and ONNX Runtime takes {least} to {most}")
        given["opset"] = opset
    if examples is not None:
        given["examples"] = examples
    return ExportSpec.model_validate({**recipe.model_dump(mode="json"), **given})


class Real(NamedTuple):
    """Real items of the run's validation split: for the gate, to measure quantisation by, and to calibrate it with."""

    examples: "list[Item]"
    measure: "list[Item]"
    calibration: "list[Item]"


def _real(run: "Run", spec: "ExportSpec") -> Real:
    """Choose real items, each kind spread over the validation split and no item in two of them.

    Where the split is too small for all, each kind gets its share of it.
    """
    import numpy as np

    rows = run.dataset().rows(run.recipe.data.validation)
    quantising = "int8" in spec.formats
    wanted = (spec.examples, spec.int8.examples * quantising, spec.int8.calibration_items * quantising)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(sum(wanted), len(rows))).astype(np.int64))]
    parts = []
    for place, count in enumerate(wanted):
        part = min(-(-len(rows) * count // max(sum(wanted[place:]), 1)), len(rows))
        chosen = np.unique(np.linspace(0, len(rows) - 1, part).astype(np.int64))
        parts.append(_sound(run, rows[chosen]) if part else [])
        rows = np.delete(rows, chosen) if part else rows
    return Real(*parts)


def _sound(run: "Run", rows: "NDArray[np.int64]") -> "list[Item]":
    """The items of some rows, without those that cannot be decoded."""
    from vigil_data.decode import Decoder, Undecodable

    decoder, items = Decoder(run.recipe.inputs, ()), []
    for item in run.dataset().take(rows):
        try:
            decoder.decode(item)
        except Undecodable:
            continue
        items.append(item)
    return items


def _facts(run: "Run", checkpoint: str) -> dict[str, Any]:
    """What the bundle says of its origin."""
    import json

    recipe, environment = run.recipe, run.read_environment()
    metrics = sorted(run.path.glob("evaluation/*/metrics.json"))
    tracked = {"id": run.tracked_id, "project": recipe.tracking.project, "entity": recipe.tracking.entity}
    return {
        "name": recipe.name,
        "recipe": run.resolved.read_text(encoding="utf-8"),
        "evaluation": {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in metrics},
        "run": str(run.path),
        "checkpoint": checkpoint,
        **{name: environment[name] for name in ("dataset", "git") if name in environment},
        **({"wandb": tracked} if tracked["id"] else {}),
        "licences": _licences(run),
    }


def _licences(run: "Run") -> dict[str, Any]:
    """The licences of the weights that training began with, and of the tokenizer."""
    from vigil_data.items import MODALITIES
    from vigil_serving.bundle.licences import licences

    recipe = run.recipe
    encoders = {m: encoder for m in MODALITIES if (encoder := getattr(recipe.model.encoders, m)) is not None}
    sources: dict[str, Any] = {m: encoder.weights for m, encoder in encoders.items() if encoder.weights.kind != "random"}
    if recipe.inputs.text is not None:
        sources["tokenizer"] = recipe.inputs.text.tokenizer
    return licences(sources, {str(part): name for part, name in recipe.export.licences.items()})


def _step(name: str, seconds: float | None) -> None:
    typer.echo(f"{name:<44}     kept" if seconds is None else f"{name:<44} {seconds:6.1f} s")


def _show_candidates(candidates: "tuple[Candidate, ...]") -> None:
    """Print a row for each way of quantising an encoder that was tried."""
    if not candidates:
        return
    from rich.table import Table

    table = Table("encoder", "as", "ms", "MB", "AP", "max diff", "flips", "")
    for c in candidates:
        time, size = "-" if c.milliseconds is None else f"{c.milliseconds:.1f}", f"{c.bytes / 1e6:.1f}"
        measured = (_ap(c.ap_change), f"{c.max_difference:.1e}", f"{c.flips} of {c.decisions}") if c.decisions else ("-",) * 3
        table.add_row(c.modality, c.name, time, size, *measured, "chosen" if c.chosen else c.failed or "")
    _print(table)


def _ap(change: "Mapping[str, float | None]") -> str:
    """The label that loses most of its average precision; a dash where none could be measured."""
    known = {label: value for label, value in change.items() if value is not None}
    if not known:
        return "-"
    label = min(known, key=lambda name: known[name])
    return f"{known[label]:+.4f} {label}"


def _show_parity(parity: "tuple[Parity, ...]") -> None:
    """Print a row for each form."""
    from rich.table import Table

    table = Table("form", "batches", "items", "decisions", "max diff", "flips", "on real items", "other actions", "AP")
    for p in parity:
        counts = (str(p.cases), str(p.items), str(p.decisions))
        real = f"{p.real_flips} of {p.real_items * len(p.ap_change)}"
        table.add_row(p.form, *counts, f"{p.max_difference:.1e}", str(p.flips), real, str(p.action_flips), _ap(p.ap_change))
    _print(table)


def _print(table: "Table") -> None:
    """Print a table, as wide as it has to be where it goes into a file or a pipe."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
