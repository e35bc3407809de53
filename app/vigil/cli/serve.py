"""`vigil serve`: a bundle behind HTTP, for trying out and for small traffic."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("serve")(serve)


def serve(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a symbolic link to it.", metavar="BUNDLE")],
    *,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free; the log says which.")] = 8000,
    variant: Annotated[str, typer.Option(help="Which form of the encoders: fp32, or int8 where the bundle has it.")] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads within an operator; all cores if not given.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Batches that are scored at the same time.")] = 2,
    max_batch: Annotated[int, typer.Option(min=1, help="Items that are scored together.")] = 32,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a lone item waits for others.")] = 4,
    queue: Annotated[int, typer.Option(min=1, help="Items that may wait; beyond that clients get 429.")] = 256,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Bytes of one request.")] = 32 * 1024 * 1024,
    max_items: Annotated[int, typer.Option(min=1, help="Items of one request.")] = 64,
    max_media: Annotated[int, typer.Option(min=1, help="Pictures and sounds of one request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of all pictures of one request.")] = 90_000_000,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of all sounds of one request.")] = 3600,
    max_characters: Annotated[int, typer.Option(min=1, help="Characters of one request.")] = 1_000_000,
    shadow: Annotated[Path | None, typer.Option(metavar="BUNDLE", help="Score a second bundle beside the answers.")] = None,
    shadow_log: Annotated[Path | None, typer.Option(metavar="FILE", help="Append its differences, as JSON lines.")] = None,
    shadow_tolerance: Annotated[float, typer.Option(min=0, help="A probability differs if by more than this.")] = 1e-3,
    admin_token: Annotated[
        str | None,
        typer.Option(envvar="VIGIL_ADMIN_TOKEN", help="Who sends it may reload; better in the environment than here."),
    ] = None,
    drain_seconds: Annotated[float, typer.Option(min=0, help="The longest that stopping waits for open requests.")] = 30,
    upload_seconds: Annotated[float, typer.Option(min=0.1, help="The longest that a body may take to arrive.")] = 30,
    public_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Refuse bundles that are not signed by it.")] = None,
) -> None:
    """Answer requests with a bundle's decisions: HTTP, the KServe V2 protocol, metrics, and a page to try it out.

    SIGHUP reads the bundle anew from the same place; SIGTERM and Ctrl-C answer what was accepted and stop.
    """
    from vigil_serving.server.main import serve as run
    from vigil_serving.server.settings import Limits, Settings

    limits = Limits(max_bytes, max_items, max_media, max_pixels, max_seconds, max_characters)
    settings = Settings(
        bundle=bundle,
        variant=variant,
        threads=threads,
        workers=workers,
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000,
        queue=queue,
        limits=limits,
        shadow=shadow,
        shadow_log=shadow_log,
        shadow_tolerance=shadow_tolerance,
        admin_token=admin_token,
        drain_seconds=drain_seconds,
        upload_seconds=upload_seconds,
        public_key=public_key,
    )
    run(settings, host, port)
