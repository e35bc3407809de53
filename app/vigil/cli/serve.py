"""`vigil serve`: serve a bundle over HTTP, to try it and for small traffic."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("serve")(serve)


def serve(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a symbolic link to it.", metavar="BUNDLE")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one, which is logged.")] = 8000,
    variant: Annotated[str, typer.Option(help="Variant of the encoders: fp32, or int8 if the bundle has it.")] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads within an operator (default: all cores).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Batches scored at the same time.")] = 2,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum items per batch.")] = 32,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that the first item of a batch waits.")] = 4,
    queue: Annotated[int, typer.Option(min=1, help="Maximum items waiting; beyond that clients get 429.")] = 256,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Maximum bytes of a request.")] = 32 * 1024 * 1024,
    max_items: Annotated[int, typer.Option(min=1, help="Maximum items of a request.")] = 64,
    max_media: Annotated[int, typer.Option(min=1, help="Maximum images and audio files of a request.")] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Maximum pixels of all images of a request.")] = 90_000_000,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Maximum seconds of all audio of a request.")] = 3600,
    max_characters: Annotated[int, typer.Option(min=1, help="Maximum characters of a request.")] = 1_000_000,
    shadow: Annotated[Path | None, typer.Option(metavar="BUNDLE", help="Second bundle, scored after the response.")] = None,
    shadow_log: Annotated[Path | None, typer.Option(metavar="FILE", help="File for its differences, as JSON lines.")] = None,
    shadow_tolerance: Annotated[float, typer.Option(min=0, help="Largest difference of a probability to ignore.")] = 1e-3,
    admin_token: Annotated[
        str | None,
        typer.Option(envvar="VIGIL_ADMIN_TOKEN", help="Token that allows reloading; prefer the environment variable."),
    ] = None,
    drain_seconds: Annotated[float, typer.Option(min=0, help="Maximum time to answer open requests when stopping.")] = 30,
    upload_seconds: Annotated[float, typer.Option(min=0.1, help="Maximum time for a body to arrive.")] = 30,
    public_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Refuse bundles that are not signed by this key.")] = None,
) -> None:
    """Serve a bundle's decisions over HTTP: JSON, forms, the KServe V2 protocol, metrics, and a page to try the bundle.

    SIGHUP reloads the bundle from its path. SIGTERM and Ctrl-C answer open requests and stop.
    """
    from vigil_serving.server.main import serve as run
    from vigil_serving.server.settings import RequestLimits, ServerSettings

    limits = RequestLimits(max_bytes, max_items, max_media, max_pixels, max_seconds, max_characters)
    settings = ServerSettings(
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
