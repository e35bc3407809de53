"""`vigil triton`: a bundle as a model repository of Triton."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("triton")(triton)


def triton(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    to: Annotated[Path, typer.Option(help="The model repository, a new folder.", metavar="REPOSITORY")],
    *,
    name: Annotated[str | None, typer.Option(help="What clients call the model; the bundle's name if not given.")] = None,
    variant: Annotated[str, typer.Option(help="Which form of the encoders, such as int8.")] = "fp32",
    instances: Annotated[int, typer.Option(min=1, help="Processes that decode and decide, on each server.")] = 2,
    encoder_instances: Annotated[int, typer.Option(min=1, help="Instances of each graph, on each device.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Segments that one run of an encoder holds at most.")] = 16,
    queue_delay: Annotated[int, typer.Option(min=0, help="Microseconds that segments wait for those of other requests.")] = 1000,
    pad_tokens: Annotated[int, typer.Option(min=1, help="Passages are padded to a multiple of so many tokens.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads within an operator; all cores if not given.")] = None,
    cache_bytes: Annotated[int, typer.Option(min=0, help="Bytes of encoded media that each process remembers.")] = 64 << 20,
) -> None:
    """Write a bundle as a model repository for NVIDIA's Triton Inference Server."""
    from vigil_serving.triton.repository import write_repository

    models = write_repository(
        bundle,
        to,
        name=name,
        variant=variant,
        instances=instances,
        encoder_instances=encoder_instances,
        max_batch=max_batch,
        queue_delay=queue_delay,
        pad_tokens=pad_tokens,
        threads=threads,
        cache_bytes=cache_bytes,
    )
    typer.echo(f"models: {', '.join(models)}")
    typer.echo(f"repository: {to}")
