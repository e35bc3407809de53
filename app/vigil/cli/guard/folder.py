"""`vigil guard export` and `score`: a guard as a Hugging Face folder, and scoring through a server of its language model."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vigil_serving.llm_server.score import ServerSummary

DType = Literal["fp32", "bf16", "fp16"]
Api = Literal["completions", "tgi"]  # as in vigil_serving.llm_server.protocols


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("export")(export)
    group.command("score")(score)


def export(
    run: Annotated[Path, typer.Argument(help="The guard's run folder.", metavar="RUN")],
    to: Annotated[Path, typer.Option("--to", help="The folder to write; an older one there is replaced.", metavar="FOLDER")],
    *,
    dtype: Annotated[DType, typer.Option(help="Type of the weights.")] = "fp32",
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Export a guard that also reads pictures or sound without them.")
    ] = False,
    examples: Annotated[
        int, typer.Option(min=0, help="Validation items on which the folder is compared; each of their prompts runs alone.")
    ] = 16,
    checkpoint: Annotated[str, typer.Option(help="best, last, or the path of a checkpoint.")] = "best",
    sign: Annotated[Path | None, typer.Option(metavar="PEM", help="Sign the folder with this ed25519 private key.")] = None,
) -> None:
    """Export a guard as a folder in Hugging Face's layout, for transformers, vLLM, llama.cpp and TGI.

    Adapters are merged into the weights. The folder is written only if it decides as the trained guard does, each prompt run
    alone by transformers. README.md in it documents the prompt and the answers' tokens for other programs.
    """
    from vigil.workflows.guard.huggingface_folder import export_guard_folder
    from vigil_data.progress import Progress
    from vigil_training.runs.run import Run

    start = time.perf_counter()
    with Progress("export", unit="prompts") as progress:
        written = export_guard_folder(
            Run(run),
            to,
            dtype=dtype,
            text_only=text_only,
            examples=examples,
            checkpoint=checkpoint,
            sign=sign,
            progress=progress,
        )
    found = written.agreement
    typer.echo(
        f"{found.parity.flips} of {found.parity.decisions} decisions differ from the trained guard's; log odds by up to "
        f"{found.log_odds_difference:.1e}, probabilities by up to {found.parity.max_difference:.1e}"
    )
    if found.prompts:
        typer.echo(f"{found.rendered_equal} of {found.prompts} prompts have the same tokens by the folder's chat template")
    typer.echo(f"folder: {to} ({time.perf_counter() - start:.1f} s)")


def score(
    folder: Annotated[Path, typer.Argument(help="A folder of `vigil guard export`.", metavar="FOLDER")],
    dataset: Annotated[Path, typer.Argument(help="The dataset's folder.", metavar="DATASET")],
    *,
    server: Annotated[
        str, typer.Option(metavar="URL", help="Address of the server of the language model, such as http://127.0.0.1:8000.")
    ],
    to: Annotated[Path, typer.Option(help="A Parquet file (.parquet) or a Lance table (.lance).", metavar="OUT")],
    api: Annotated[
        Api, typer.Option(help="completions: /v1/completions of vLLM, llama.cpp, SGLang and others; tgi: /generate of TGI.")
    ] = "completions",
    model: Annotated[str | None, typer.Option(help="Name of the model on the server (default: the only one).")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the server's API key.")
    ] = None,
    top_logprobs: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Likeliest tokens to ask for, where a server cannot be asked for the answers alone (default: 20; with tgi 5).",
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests at the same time.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Longest wait for a response.")] = 120.0,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts after a request that failed.")] = 6,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of log odds from the trained guard on the folder's golden prompts.")
    ] = 0.5,
    split: Annotated[str | None, typer.Option(help="Score only this split.")] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Score only the rows of this condition.")] = None,
    policy_text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Policy texts in place of the guard's: a taxonomy, or a policy_text.json.")
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Items per shard: what a kill costs at most.")] = 256,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the shards of an interrupted job.")] = False,
) -> None:
    """Score a dataset with a guard whose language model a server runs; neither PyTorch nor transformers is needed.

    The prompts are those of the guard, sent as token ids where the server takes them. First the server is compared with the
    trained guard on golden prompts. The table is that of `vigil score`, without evidence; its column bounded names labels with
    an answer that was not reported. After an interruption or a kill the same command resumes.
    """
    from vigil_data.errors import UserError
    from vigil_data.progress import Progress
    from vigil_serving.llm_server.client import ConnectionSettings
    from vigil_serving.llm_server.score import score_with_server

    key = None if api_key_env is None else os.environ.get(api_key_env)
    if api_key_env is not None and not key:
        raise UserError(f"--api-key-env {api_key_env}: the environment has no such variable, or it is empty")
    start = time.perf_counter()
    try:
        with Progress("scoring") as progress:
            summary = score_with_server(
                folder,
                dataset,
                to,
                ConnectionSettings(server, key, timeout, retries),
                api=api,
                model=model,
                top=top_logprobs or (5 if api == "tgi" else 20),
                concurrency=concurrency,
                tolerance=tolerance,
                split=split,
                where=where,
                policy_text=policy_text,
                chunk=chunk,
                restart=restart,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command resumes", err=True)
        raise
    _print_summary(summary, time.perf_counter() - start, to)


def _print_summary(summary: "ServerSummary", seconds: float, to: Path) -> None:
    if (check := summary.check) is not None:
        typer.echo(f"server: {check.model or 'its only model'}, prompts as {'token ids' if check.tokens else 'text'}")
        typer.echo(
            f"log odds differ from the trained guard's by up to {check.max_difference:.1e} on {check.prompts - check.bounded} of "
            f"{check.prompts} golden prompts, {check.flips} answers differ"
        )
    for name, count in [*summary.decided.items(), *summary.actions.items()]:
        typer.echo(f"{name:<32} {count:>9} of {summary.items - summary.errors}")
    if summary.errors:
        typer.echo(f"{summary.errors} items have no decision; see the column error")
    if summary.bounded:
        typer.echo(
            f"{summary.bounded} items have a probability that is only a bound; see the column bounded, raise --top-logprobs"
        )
    if summary.not_evaluated:
        typer.echo(f"not evaluated with this policy: {', '.join(summary.not_evaluated)}")
    if summary.uncalibrated:
        typer.echo(f"not calibrated with this policy: {', '.join(summary.uncalibrated)}")
    if summary.retried:
        typer.echo(f"{summary.retried} requests were sent again")
    if summary.resumed:
        typer.echo(f"{summary.resumed} items were scored before")
    rate = (summary.items - summary.resumed) / seconds
    typer.echo(f"{summary.items} items in {seconds:.1f} s ({rate:,.1f} items/s): {to}")
