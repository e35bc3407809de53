"""Model registry: bundles and runs in a folder, on the Hugging Face hub or in W&B, verified after they are pulled.

Example:
    >>> push("bundles/scam", "hf:team/scam")
    Pushed(place='hf:team/scam', version='3f2a…', new=True)
    >>> pull("hf:team/scam@3f2a…", "models/scam", public_key="team.pem")
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vigil.workflows.model_source import source_kind
from vigil.workflows.tracking import hub_registry
from vigil.workflows.tracking.pulled_folder import keep_listed, pulled_folder
from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import (
    StrPath,
    link_or_copy,
    make_folder,
    remove,
    replaced_folder,
    sha256_file,
    sha256_json,
    write_file,
    write_json,
)
from vigil_data.lineage import Input, Node, record
from vigil_data.progress import ProgressCallback
from vigil_serving.bundle.manifest import MANIFEST, SIGNATURE_FILE, check_listed, is_bundle, list_files, write_manifest

RECIPE = "resolved.yaml"
SOURCES = "sources.json"
"""Local files of the recipe that a pushed run carries: path in the recipe to path in the run."""

MAX_SOURCE_BYTES = 64 << 20
"""Larger files of local sources are the weights that training started from, which the checkpoint replaces."""

RUN_FILES = ("run_id", "environment.json", "thresholds.json", "calibration.json", "policy.json", "metrics.jsonl")

Kind = Literal["bundle", "run"]
Scheme = Literal["hf", "wandb", "folder"]


class Package(NamedTuple):
    """What is pushed: a complete folder with a manifest.

    Attributes:
        folder: the folder.
        kind: ``bundle`` or ``run``.
        digest: SHA-256 of its manifest.
    """

    folder: Path
    kind: Kind
    digest: str


class Pushed(NamedTuple):
    """Outcome of a push.

    Attributes:
        place: where it is.
        version: commit on the hub, version in W&B, or digest in a folder.
        new: whether anything was sent; false if the same content was there.
    """

    place: str
    version: str
    new: bool


class Pulled(NamedTuple):
    """Outcome of a pull.

    Attributes:
        folder: the folder.
        kind: ``bundle`` or ``run``.
        version: as in :class:`Pushed`.
        digest: SHA-256 of the manifest that was verified.
    """

    folder: Path
    kind: Kind
    version: str
    digest: str


def push(source: StrPath, to: str, *, public: bool = False, progress: ProgressCallback | None = None) -> Pushed:
    """Push a bundle, or a run as its best checkpoint, recipe and evaluations, and record where it is in the lineage.

    Args:
        source: the bundle or run.
        to: ``hf:ORG/NAME``, ``wandb:[ENTITY/]PROJECT/NAME``, or a folder.
        public: make a new repository on the hub public (default: private).
        progress: called with (task, done, total).

    Raises:
        UserError: if the source is neither, was altered, or the target cannot be used.
        Failure: if a server or the disk fails.
    """
    scheme, place = split_place(to)
    if public and scheme != "hf":
        raise UserError(f"{to}: --public is for a repository on the Hugging Face hub, hf:ORG/NAME")
    with packed(Path(source), progress) as package:
        if progress is not None:
            progress(f"sending to {to}", 0, None)
        pushed = Pushed(to, *_send(package, scheme, place, public=public))
        _record(Path(source).resolve(), package, pushed, folder=scheme == "folder")
        return pushed


def _send(package: Package, scheme: Scheme, place: str, *, public: bool) -> tuple[str, bool]:
    """Send a package, and return its version there and whether anything was sent."""
    if scheme == "hf":
        return hub_registry.push(package.folder, place, private=not public)
    if scheme == "wandb":
        from vigil_training.tracking.artifacts import log_folder

        return log_folder(package.folder, place, type=package.kind, digest=package.digest)
    folder = Path(place)
    if (folder / MANIFEST).is_file() and sha256_file(folder / MANIFEST) == package.digest:
        return package.digest, False
    with replaced_folder(folder, replaces=lambda old: (old / MANIFEST).is_file()) as partial:
        shutil.copytree(package.folder, partial, dirs_exist_ok=True)
    return package.digest, True


def _record(source: Path, package: Package, pushed: Pushed, *, folder: bool) -> None:
    """Record where a bundle or run was pushed to."""
    from vigil_training.runs.lineage import run_digest

    place = str(Path(pushed.place).resolve()) if folder else pushed.place
    facts = {"place": place, "version": pushed.version}
    node = Node("publication", sha256_json([place, pushed.version]), pushed.place, place if folder else "", facts)
    digest = package.digest if package.kind == "bundle" else run_digest(source)
    record(node, [Input(package.kind, digest, "pushed", source.name, str(source))])


def pull(
    source: str,
    to: StrPath,
    *,
    public_key: StrPath | None = None,
    verify: bool = False,
    progress: ProgressCallback | None = None,
) -> Pulled:
    """Pull a bundle or run into a new folder, which is verified before it appears.

    What an interrupted pull has fetched is kept next to the folder, and the next one fetches the rest.

    Args:
        source: ``hf:ORG/NAME[@REVISION]``, ``wandb:[ENTITY/]PROJECT/NAME[:VERSION]``, or a folder.
        to: the folder, absent or empty.
        public_key: PEM file; a bundle must be signed by the holder of this key.
        verify: run the bundle's golden cases on this machine, too.
        progress: called with (task, done, total).

    Raises:
        UserError: if there is no such source, ``to`` is in use, the content was altered or is not signed by the key, or a run was
            to be verified.
        Failure: if a server or the disk fails, or the bundle decides otherwise on this machine.
    """
    scheme, place = split_place(source)
    to = Path(to)
    if progress is not None:
        progress(f"fetching {source}", 0, None)
    with pulled_folder(to) as partial:
        version = _fetch(scheme, place, source, partial)
        try:
            kind, digest = _verify(partial, source, public_key)
            if verify and kind == "bundle":
                from vigil_serving.parity.verify import verify_bundle

                verify_bundle(partial, progress, public_key)
            elif verify:
                raise UserError(f"{source}: a run, which has no golden cases; leave --verify out, and use `vigil evaluate {to}`")
            elif kind == "run":
                _settle_run(partial, to.resolve())
        except (UserError, Failure):  # All of it was fetched, so another try would end in the same way.
            remove(partial)
            raise
    return Pulled(to, kind, version, digest)


def _fetch(scheme: Scheme, place: str, source: str, partial: Path) -> str:
    """Fetch what a folder lacks, the manifest first, and return the version."""

    def keep() -> None:
        keep_listed(partial, source)

    if scheme == "hf":
        return hub_registry.pull(place, partial, keep)
    if scheme == "wandb":
        from vigil_training.tracking.artifacts import fetch_folder

        return str(fetch_folder(place, partial, first=MANIFEST, then=keep)["artifact"])
    folder = Path(place)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{source}: no folder that `vigil push` filled: it has no {MANIFEST}")
    shutil.copyfile(folder / MANIFEST, partial / MANIFEST)
    keep()
    for name in [*list_files(folder), SIGNATURE_FILE]:
        if (folder / name).is_file() and not (partial / name).exists():
            make_folder((partial / name).parent)
            shutil.copy2(folder / name, partial / name)
    return sha256_file(partial / MANIFEST)


def split_place(place: str) -> tuple[Scheme, str]:
    """Return the kind of a registry, and the name in it.

    Raises:
        UserError: if the name is empty, or of an unknown service.
    """
    scheme, colon, name = place.partition(":")
    if scheme in ("hf", "wandb") and colon:
        if "/" not in name.strip("/"):
            wanted = "hf:ORG/NAME" if scheme == "hf" else "wandb:[ENTITY/]PROJECT/NAME"
            raise UserError(f"{place}: write {wanted}")
        return ("hf", name) if scheme == "hf" else ("wandb", name)
    if colon and "/" not in scheme and not Path(place).exists():
        raise UserError(f"{place}: unknown registry {scheme}; write hf:ORG/NAME, wandb:[ENTITY/]PROJECT/NAME, or a folder")
    return "folder", place


@contextmanager
def packed(source: Path, progress: ProgressCallback | None = None) -> Iterator[Package]:
    """Give a folder with a manifest: that of a bundle, or a temporary one with what is pushed of a run.

    Raises:
        UserError: if the source is neither a bundle nor a finished run, or the bundle was altered.
    """
    kind = source_kind(source)
    if kind == "table":
        raise UserError(f"{source}: a file; name a bundle or a run")
    if kind == "bundle":
        from vigil_serving.bundle.load import load_bundle

        if progress is not None:
            progress("checking the bundle", 0, None)
        yield Package(source, "bundle", load_bundle(source).digest)
        return
    with tempfile.TemporaryDirectory(dir=source, prefix=".push-") as place:
        folder = Path(place)
        _pack_run(source, folder)
        write_manifest(folder)
        yield Package(folder, "run", sha256_file(folder / MANIFEST))


def _pack_run(source: Path, folder: Path) -> None:
    """Fill a folder with what `vigil evaluate` and `vigil export` need of a run, its evaluations and a card."""
    from vigil.workflows.tracking.run_card import run_card
    from vigil_training.runs.run import Run
    from vigil_training.tracking.content import ContentRule

    run = Run(source)
    if not run.finished:
        raise UserError(f"{source}: the run has not finished; resume it with `vigil train`")
    for name in (RECIPE, *RUN_FILES):
        if (source / name).is_file():
            link_or_copy(source / name, folder / name)
    best = run.checkpoint("best")
    shutil.copytree(best, folder / "checkpoints" / best.name, copy_function=link_or_copy)
    rule = ContentRule(run.recipe.tracking.content)
    for metrics in sorted(source.glob("evaluation/*/metrics.json")):
        (folder / "evaluation" / metrics.parent.name).mkdir(parents=True)
        for name, content in rule.evaluation_files(metrics.parent).items():
            write_file(folder / "evaluation" / metrics.parent.name / name, content)
    carried = {}
    for number, path in enumerate(dict.fromkeys(_local_sources(run.recipe.model_dump(mode="json")))):
        original = Path(path).expanduser()
        name = f"sources/{number}-{original.name}"
        files = [original] if original.is_file() else sorted(file for file in original.rglob("*") if file.is_file())
        for file in files:
            if file.stat().st_size <= MAX_SOURCE_BYTES:
                copy = folder / name / file.relative_to(original) if original.is_dir() else folder / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                carried[path] = name
    write_json(folder / SOURCES, carried)
    write_file(folder / "README.md", run_card(run, best.name))


def _local_sources(values: Any) -> Iterator[str]:
    """Yield the paths of the local sources in a recipe's values."""
    if isinstance(values, Mapping):
        if values.get("kind") == "local" and isinstance(values.get("path"), str):
            yield values["path"]
        for value in values.values():
            yield from _local_sources(value)
    elif isinstance(values, list):
        for value in values:
            yield from _local_sources(value)


def _verify(folder: Path, source: str, public_key: StrPath | None) -> tuple[Kind, str]:
    """Check the files that were pulled against their manifest, and return their kind and digest."""
    try:
        if is_bundle(folder):
            from vigil_serving.bundle.load import load_bundle

            return "bundle", load_bundle(folder, public_key=public_key).digest
        if not (folder / MANIFEST).is_file() or not (folder / RECIPE).is_file():
            raise UserError(f"{folder}: neither a bundle nor a run that `vigil push` sent")
        if public_key is not None:
            raise UserError(f"{folder}: a run, which is not signed; leave --public-key out, or push a signed bundle")
        return "run", check_listed(folder)
    except UserError as error:
        raise UserError(*(line.replace(str(folder), source) for line in error.lines)) from None


def _settle_run(folder: Path, to: Path) -> None:
    """Let the recipe name the files that came with the run, where it will be; it grows from here on, without a manifest."""
    from vigil_training.recipe.recipe import Recipe
    from vigil_training.recipe.resolve import read_recipe

    (folder / MANIFEST).unlink()
    carried = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    if carried:
        paths = {old: str(to / new) for old, new in carried.items()}
        values = _renamed(read_recipe(folder / RECIPE).model_dump(mode="json"), paths)
        write_file(folder / RECIPE, Recipe.model_validate(values).model_dump_json(indent=1) + "\n")


def _renamed(values: Any, paths: Mapping[str, str]) -> Any:
    if isinstance(values, Mapping):
        renamed = {key: _renamed(value, paths) for key, value in values.items()}
        if values.get("kind") == "local" and values.get("path") in paths:
            renamed["path"] = paths[values["path"]]
        return renamed
    return [_renamed(value, paths) for value in values] if isinstance(values, list) else values
