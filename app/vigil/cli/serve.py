"""`vigil score` and `vigil serve`: decisions of a bundle for a dataset, and over HTTP."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.data.ray_option import Ray
from vigil.cli.monitor.log_option import LogColumnOption, LogDaysOption, LogMaxBytesOption, LogOption, log_options
from vigil_serving.traffic.options import DEFAULT_DAYS, DEFAULT_MAX_BYTES

if TYPE_CHECKING:
    from vigil_serving.scoring.score import RayOptions, ScoringSummary


PolicyTextOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Policy texts that a guard reads in place of the bundle's: a taxonomy (.yaml), whose texts are not evaluated, "
        "or the policy_text.json of `vigil evaluate BUNDLE --policy-text`.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("score")(score)
    app.command("serve")(serve)


def score(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    dataset: Annotated[Path, typer.Argument(help="The dataset's folder.", metavar="DATASET")],
    to: Annotated[Path, typer.Option(help="A Parquet file (.parquet) or a Lance table (.lance).", metavar="OUT")],
    *,
    split: Annotated[str | None, typer.Option(help="Score only this split.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Score only rows of a condition, such as \"language = 'en'\".")
    ] = None,
    variant: Annotated[str, typer.Option(help="Variant of the encoders, such as int8.")] = "fp32",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads within an operator (default: all cores; on Ray one per worker).")
    ] = None,
    ray: Ray = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --ray: number of workers (default: as many as fit).")] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Items per shard: what a kill costs at most.")] = 1024,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the shards of an interrupted job.")] = False,
    policy_text: PolicyTextOption = None,
    log: LogOption = None,
    log_column: LogColumnOption = None,
) -> None:
    """Score a dataset with ONNX Runtime; PyTorch is not needed.

    After an interruption or a kill the same command resumes; every item is in the table exactly once.
    """
    options = _ray_options(ray, workers)
    from vigil_data.progress import Progress
    from vigil_serving.scoring.score import score_dataset

    start = time.perf_counter()
    try:
        with Progress("scoring") as progress:
            summary = score_dataset(
                bundle,
                dataset,
                to,
                split=split,
                where=where,
                variant=variant,
                threads=threads,
                chunk=chunk,
                ray=options,
                restart=restart,
                policy_text=policy_text,
                log=log_options(log, log_column),
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command resumes", err=True)
        raise
    _print_summary(summary, time.perf_counter() - start, to)


def _ray_options(address: str | None, workers: int | None) -> "RayOptions | None":
    if address is None:
        if workers is not None:
            from vigil_data.errors import UserError

            raise UserError(f"--workers {workers}: needs --ray")
        return None
    from vigil_serving.scoring.score import RayOptions

    return RayOptions(address, workers)


def _print_summary(summary: "ScoringSummary", seconds: float, to: Path) -> None:
    for name, count in [*summary.decided.items(), *summary.actions.items()]:
        typer.echo(f"{name:<32} {count:>9} of {summary.items - summary.errors}")
    if summary.not_evaluated:
        typer.echo(f"not evaluated with this policy text: {', '.join(summary.not_evaluated)}; see `vigil evaluate BUNDLE`")
    if summary.uncalibrated:
        typer.echo(f"uncalibrated, decided from 0.5: {', '.join(summary.uncalibrated)}")
    if summary.errors:
        typer.echo(f"{summary.errors} items could not be decoded; see the column error")
    if summary.resumed:
        typer.echo(f"{summary.resumed} items were scored before")
    rate = (summary.items - summary.resumed) / seconds
    typer.echo(f"{summary.items} items in {seconds:.1f} s ({rate:,.0f} items/s): {to}")


def serve(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or a symbolic link to it.", metavar="BUNDLE")],
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all. Others than loopback need an API key or --no-auth.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one, which is logged.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="API keys, one a line, read again when the file changes (or set VIGIL_API_KEY, keys by spaces)."
        ),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Listen on any address without API keys.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Another name of this server in the header Host; *.NAME are its subdomains. Repeatable."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Another site whose pages may use this server, such as https://app.example.com. Repeatable."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Certificate chain; with --tls-key the server uses TLS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="The certificate's private key, unencrypted.")] = None,
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
    drain_seconds: Annotated[float, typer.Option(min=0, help="Maximum time to answer open requests when stopping.")] = 30,
    upload_seconds: Annotated[
        float, typer.Option(min=0.1, help="Maximum time for the head of a request to arrive, and for its body.")
    ] = 30,
    max_connections: Annotated[int, typer.Option(min=1, help="Maximum open connections; requests on others get 503.")] = 1000,
    public_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Refuse bundles that are not signed by this key.")
    ] = None,
    policy_text: PolicyTextOption = None,
    log: LogOption = None,
    log_column: LogColumnOption = None,
    log_days: LogDaysOption = DEFAULT_DAYS,
    log_max_bytes: LogMaxBytesOption = DEFAULT_MAX_BYTES,
) -> None:
    """Serve a bundle's decisions over HTTP: JSON, forms, the KServe V2 protocol, metrics, and a page to try the bundle.

    Secrets come from the environment, not from options, which everyone can see: VIGIL_API_KEY (API keys, separated by spaces) and
    VIGIL_ADMIN_TOKEN (allows POST /v1/reload). SIGHUP reloads the bundle, the file of API keys and the certificate. SIGTERM and
    Ctrl-C answer open requests and stop.
    """
    from vigil_serving.server.main import serve as run
    from vigil_serving.server.settings import RequestLimits, ServerSettings

    limits = RequestLimits(max_bytes, max_items, max_media, max_pixels, max_seconds, max_characters)
    settings = ServerSettings(
        bundle=bundle,
        host=host,
        port=port,
        api_keys=tuple(os.environ.get("VIGIL_API_KEY", "").split()),
        api_key_file=api_key_file,
        no_auth=no_auth,
        allow_hosts=tuple(allow_host or ()),
        allow_origins=tuple(allow_origin or ()),
        tls_cert=tls_cert,
        tls_key=tls_key,
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
        admin_token=os.environ.get("VIGIL_ADMIN_TOKEN"),
        drain_seconds=drain_seconds,
        upload_seconds=upload_seconds,
        max_connections=max_connections,
        public_key=public_key,
        policy_text=policy_text,
        log=log_options(log, log_column, log_days, log_max_bytes),
    )
    run(settings)
