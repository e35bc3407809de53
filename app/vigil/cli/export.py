"""`vigil export`, `vigil verify` and `vigil triton`: from a run to a bundle, its verification, and a Triton model repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.monitor.log_option import LogColumnOption, LogDaysOption, LogMaxBytesOption, log_options
from vigil_serving.traffic.options import DEFAULT_DAYS, DEFAULT_MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from vigil_serving.bundle.metadata import Candidate, Parity


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("export")(export)
    app.command("verify")(verify)
    app.command("triton")(triton)


def export(
    run: Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")],
    to: Annotated[Path, typer.Option("--to", help="The bundle's folder; an older bundle there is replaced.", metavar="BUNDLE")],
    *,
    formats: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="onnx, onnx-single, torchscript, torch-export, fp16, bf16, int8; separated by commas (default: the recipe's).",
        ),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset (default: the recipe's).")] = None,
    examples: Annotated[
        int | None,
        typer.Option(min=0, help="Validation items on which the formats are compared (default: the recipe's)."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what an interrupted export left.")] = False,
    sign: Annotated[Path | None, typer.Option(metavar="PEM", help="Sign the bundle with this ed25519 private key.")] = None,
    triton: Annotated[
        Path | None, typer.Option(metavar="REPOSITORY", help="Also write a Triton model repository to this new folder.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or the path of a checkpoint.")] = "best",
    promote: Annotated[
        Path | None,
        typer.Option(metavar="CHAMPION", help="Export only if the run is not a regression from this run, bundle or table."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DATASET", help="With --promote: dataset of the comparison (default: the run's).")
    ] = None,
    split: Annotated[str, typer.Option(help="With --promote: split of the comparison.")] = "test",
) -> None:
    """Export a run as a bundle; fail if any requested format decides differently from the trained model."""
    import time

    from vigil.workflows.export_run import export_run
    from vigil_data.progress import Progress
    from vigil_training.runs.run import Run

    start = time.perf_counter()
    if triton is not None:
        from vigil_serving.triton.repository import check_target

        check_target(triton)
    with Progress("export", unit="batches") as progress:
        bundle = export_run(
            Run(run),
            to,
            formats=None if formats is None else [name.strip() for name in formats.split(",") if name.strip()],
            opset=opset,
            examples=examples,
            checkpoint=checkpoint,
            restart=restart,
            sign=sign,
            promote=promote,
            data=data,
            split=split,
            progress=progress,
            report=_print_step,
        )
    _print_step("total", time.perf_counter() - start)
    _print_candidates(bundle.metadata.candidates)
    _print_parity(bundle.metadata.parity)
    for name, reason in bundle.metadata.left_out.items():
        typer.echo(f"{name} was left out: {reason}")
    typer.echo(f"bundle: {to}")
    if triton is not None:
        from vigil_serving.triton.repository import write_repository

        write_repository(to, triton)
        typer.echo(f"repository: {triton}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    public_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Refuse the bundle unless it is signed by the holder of this key.")
    ] = None,
) -> None:
    """Verify that a bundle is unaltered and decides on this machine as the trained model did."""
    from vigil_data.progress import Progress
    from vigil_serving.parity.verify import verify_bundle

    with Progress("verifying", unit="batches") as progress:
        verification = verify_bundle(bundle, progress, public_key)
    _print_parity(verification.parity)
    typer.echo(f"{verification.files} files unaltered, sha256 of the manifest {verification.digest}")
    typer.echo(f"ok  {bundle}")


def triton(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    to: Annotated[Path, typer.Option(help="The model repository, a new folder.", metavar="REPOSITORY")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the model that clients call (default: the bundle's name).")] = None,
    variant: Annotated[str, typer.Option(help="Variant of the encoders, such as int8.")] = "fp32",
    instances: Annotated[int, typer.Option(min=1, help="Processes on each server that decode and decide.")] = 2,
    encoder_instances: Annotated[int, typer.Option(min=1, help="Instances of each graph on each device.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest number of segments in one run of an encoder.")] = 16,
    queue_delay: Annotated[int, typer.Option(min=0, help="Microseconds that segments wait for those of other requests.")] = 1000,
    pad_tokens: Annotated[int, typer.Option(min=1, help="Pad passages to a multiple of this many tokens.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads within an operator (default: all cores).")] = None,
    cache_bytes: Annotated[int, typer.Option(min=0, help="Bytes of encoded media that each process caches.")] = 64 << 20,
    log: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Traffic log: a folder on the server in which its processes log their decisions."),
    ] = None,
    log_column: LogColumnOption = None,
    log_days: LogDaysOption = DEFAULT_DAYS,
    log_max_bytes: LogMaxBytesOption = DEFAULT_MAX_BYTES,
) -> None:
    """Write a bundle as a model repository for NVIDIA's Triton Inference Server."""
    from vigil_data.progress import Progress
    from vigil_serving.triton.options import ModelRepositoryOptions
    from vigil_serving.triton.repository import write_repository

    options = ModelRepositoryOptions(
        variant=variant,
        instances=instances,
        encoder_instances=encoder_instances,
        max_batch=max_batch,
        queue_delay=queue_delay,
        pad_tokens=pad_tokens,
        threads=threads,
        cache_bytes=cache_bytes,
        log=log_options(log, log_column, log_days, log_max_bytes),
    )
    with Progress("writing models"):
        models = write_repository(bundle, to, name=name, options=options)
    typer.echo(f"models: {', '.join(models)}")
    typer.echo(f"repository: {to}")


def _print_step(name: str, seconds: float | None) -> None:
    typer.echo(f"{name:<44}     kept" if seconds is None else f"{name:<44} {seconds:6.1f} s")


def _print_candidates(candidates: "tuple[Candidate, ...]") -> None:
    """Print a row for each quantization of an encoder that was tried."""
    if not candidates:
        return
    from rich.table import Table

    table = Table("encoder", "quantization", "ms", "MB", "AP", "max diff", "flips", "")
    for c in candidates:
        milliseconds, megabytes = "-" if c.milliseconds is None else f"{c.milliseconds:.1f}", f"{c.bytes / 1e6:.1f}"
        measured = ("-",) * 3
        if (p := c.parity) is not None:
            measured = (_largest_ap_loss(p.ap_change), f"{p.max_difference:.1e}", f"{p.real_flips} of {p.decisions}")
        table.add_row(c.modality, c.name, milliseconds, megabytes, *measured, "chosen" if c.chosen else c.failed or "")
    _print(table)


def _largest_ap_loss(change: "Mapping[str, float | None]") -> str:
    """Return the lowest change of average precision with its label; a dash if none was measured."""
    known = {label: value for label, value in change.items() if value is not None}
    if not known:
        return "-"
    label = min(known, key=lambda name: known[name])
    return f"{known[label]:+.4f} {label}"


def _print_parity(parity: "tuple[Parity, ...]") -> None:
    """Print a row for each backend."""
    from rich.table import Table

    names = (
        "backend",
        "batches",
        "items",
        "decisions",
        "max diff",
        "flips",
        "on real items",
        "other actions",
        "AP",
        "in other batches",
    )
    table = Table(*names)
    for p in parity:
        counts = (str(p.cases), str(p.items), str(p.decisions))
        real, loss = f"{p.real_flips} of {p.real_items * len(p.ap_change)}", _largest_ap_loss(p.ap_change)
        row = (f"{p.max_difference:.1e}", str(p.flips), real, str(p.action_flips), loss)
        table.add_row(p.backend, *counts, *row, "-" if p.invariance is None else f"{p.invariance.max_difference:.1e}")
    _print(table)


def _print(table: "Table") -> None:
    """Print a table, as wide as it needs to be if the output is a file or a pipe."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
