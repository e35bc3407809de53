"""Artifacts of Weights & Biases, identified by Vigil's own digests.

A version has the digest in its metadata and, shortened, as an alias. What is at the server already is therefore found, whatever
computer it was sent from, and nothing is sent twice.

Example:
    >>> log_folder("bundles/scam", "team/moderation/scam", type="bundle", digest=digest)
    'team/moderation/scam:v0'
    >>> fetch_folder("team/moderation/scam:latest", folder, first="manifest.json", then=check)
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import Failure, UserError, one_line
from vigil_data.filesystem import StrPath, make_folder, remove, write_file
from vigil_training.tracking.upload import probe

if TYPE_CHECKING:
    import wandb

REGISTRY_PREFIX = "wandb-registry-"
"""W&B's registries are projects whose names begin so."""

_ALIAS_DIGITS = 16
_WAIT_SECONDS = 600
"""Longest time for the upload of one artifact; a checkpoint has gigabytes."""

_FINISH_SECONDS = 60.0
_RETRIES = 3
_ANSWER_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Target:
    """A project at a server of W&B.

    Attributes:
        url: address of the server.
        entity: user or team.
        project: name of the project.
    """

    url: str
    entity: str
    project: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project} at {self.url}"

    def api(self) -> "wandb.Api":
        """Return W&B's interface to what the project holds."""
        import wandb

        return wandb.Api({"entity": self.entity, "project": self.project}, timeout=_ANSWER_SECONDS)

    def has_run(self, run_id: str) -> bool:
        """Return whether the project exists and has a run.

        Raises:
            Failure: if the server fails.
        """
        with one_failure(self.url):
            try:
                return len(self.api().runs(f"{self.entity}/{self.project}", filters={"name": run_id}, per_page=1)) > 0
            except ValueError:  # There is no such project.
                return False

    def artifact(self, collection: str, version: str) -> str:
        """Return the full name of a version of an artifact."""
        return f"{self.entity}/{self.project}/{collection}:{version}"


def server_url() -> str:
    """Return the address of W&B's server: ``WANDB_BASE_URL``, W&B's settings, or its public service."""
    if given := os.environ.get("WANDB_BASE_URL"):
        return given.rstrip("/")
    import wandb

    with files_of_wandb_in(Path(tempfile.gettempdir())):
        return str(wandb.setup().settings.base_url).rstrip("/")


def open_target(entity: str | None, project: str) -> Target:
    """Check that the server answers and accepts the API key, and return a project of it.

    Args:
        entity: user or team (default: that of the API key).
        project: name of the project, which need not exist.

    Raises:
        Failure: if the server cannot be reached, or there is no API key that it accepts.
    """
    import wandb

    url = server_url()
    if problem := probe(url):
        raise Failure(f"{url}: {problem}")
    with one_failure(url):
        entity = entity or wandb.Api(timeout=_ANSWER_SECONDS).default_entity
    if not entity:
        raise Failure(f"{url}: the API key has no default entity; name the user or team in tracking.entity")
    return Target(url, entity, project)


@contextmanager
def one_failure(url: str) -> Iterator[None]:
    """Raise what W&B raises as one failure of one line."""
    try:
        yield
    except (Failure, UserError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # W&B documents no base class of its errors.
        text = one_line(" ".join(str(error).split())) or type(error).__name__
        raise Failure(f"{url}: {text[:300]}") from error


@contextmanager
def files_of_wandb_in(folder: Path) -> Iterator[Path]:
    """Give a folder for all that W&B writes while the block runs; it is removed afterwards.

    Args:
        folder: where to make it.
    """
    names = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")
    place = Path(tempfile.mkdtemp(prefix=".artifacts-", dir=folder))
    changed = {**dict.fromkeys(names, str(place)), "WANDB_SILENT": "true"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ |= changed
    try:
        yield place
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        remove(place)


@contextmanager
def open_run_at_server(target: Target, place: Path, **identity: Any) -> Iterator["wandb.Run"]:
    """Open a run of W&B to which artifacts are added; it logs no metrics, no console and no facts about this machine.

    Args:
        target: the project.
        place: folder for W&B's files.
        identity: id, name, job type and how to resume, as `wandb.init` takes them.

    Raises:
        Failure: if the server refuses or fails.
    """
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_graphql_retry_max=_RETRIES,
        x_graphql_timeout_seconds=_ANSWER_SECONDS,
        x_file_stream_retry_max=_RETRIES,
        x_file_stream_timeout_seconds=_ANSWER_SECONDS,
        x_file_transfer_retry_max=_RETRIES,
        finish_timeout=_FINISH_SECONDS,
    )
    with one_failure(target.url):
        run = wandb.init(
            entity=target.entity,
            project=target.project,
            dir=place,
            mode="online",
            settings=settings,
            reinit="create_new",
            **identity,
        )
        try:
            yield run
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish(exit_code=0)


def find_version(target: Target, collection: str, digest: str) -> "wandb.Artifact | None":
    """Return the version with a digest; ``None`` if the server has none.

    Raises:
        Failure: if the server fails.
    """
    api = target.api()
    name = target.artifact(collection, digest_alias(digest))
    with one_failure(target.url):
        found = api.artifact(name) if api.artifact_exists(name) else None
    return found if found is not None and found.metadata.get("digest") == digest else None


def make_artifact(
    collection: str,
    kind: str,
    digest: str,
    *,
    reference: str,
    metadata: Mapping[str, Any],
    files: Mapping[str, Path | bytes],
    place: Path,
) -> "wandb.Artifact":
    """Return an artifact that has not been sent: a reference with our digest, and files.

    Args:
        collection: its name.
        kind: its type.
        digest: what identifies it, which W&B's own digest of it covers.
        reference: address of what it stands for; its content is not sent.
        metadata: facts about it.
        files: path within the artifact to a file, or to its content.
        place: where such content is written until it is sent.
    """
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    artifact = wandb.Artifact(collection, type=kind, metadata={**metadata, "digest": digest})
    artifact.manifest.add_entry(ArtifactManifestEntry(path=f"{kind}-reference", ref=reference, digest=digest))
    for name, content in files.items():
        if isinstance(content, Path):
            file = content
        else:
            file = place / collection / name
            make_folder(file.parent)
            write_file(file, content)
        artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)  # read where it is, and copied nowhere
    return artifact


def send_artifact(run: "wandb.Run", artifact: "wandb.Artifact", aliases: Sequence[str] = (), *, used: bool = False) -> str:
    """Send an artifact as output of a run, or as its input, and return its name and version once the server has all of it.

    Args:
        run: the open run.
        artifact: as :func:`make_artifact` or :func:`find_version` returns it.
        aliases: added to those of the digest.
        used: whether the run used it.
    """
    names = [*aliases, digest_alias(artifact.metadata["digest"])] if artifact.is_draft() else []
    send = run.use_artifact if used else run.log_artifact
    sent = send(artifact, aliases=names).wait(timeout=_WAIT_SECONDS)
    return f"{sent.name.partition(':')[0]}:{sent.version}"


def digest_alias(digest: str) -> str:
    """Return the alias by which a version of a digest is found."""
    return f"digest-{digest[:_ALIAS_DIGITS]}"


def collection_name(kind: str, name: str) -> str:
    """Return the name of a collection, in the characters and the length that W&B allows."""
    return re.sub(r"[^\w.-]", "-", f"{kind}-{name}", flags=re.ASCII)[:120]


def log_folder(
    folder: StrPath,
    to: str,
    *,
    type: str,  # noqa: A002 (as W&B calls it)
    digest: str,
    aliases: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> tuple[str, bool]:
    """Send a folder with all its files as an artifact; nothing if the server has a version with its digest.

    Args:
        folder: the folder.
        to: ``[ENTITY/]PROJECT/NAME``.
        type: type of the artifact.
        digest: identifies the content.
        aliases: added to the version; ``latest`` is added in any case.
        metadata: facts about it.

    Returns:
        Entity, project, name and version at W&B, and whether anything was sent.

    Raises:
        UserError: if ``to`` is no such name.
        Failure: if the server refuses or fails.
    """
    entity, project, name = _split(to)
    if ":" in name:
        raise UserError(f"wandb:{to}: W&B chooses the version; leave :{name.partition(':')[2]} out")
    with files_of_wandb_in(Path(tempfile.gettempdir())) as place:
        target = open_target(entity, project)
        if (found := find_version(target, name, digest)) is not None:
            if new := [alias for alias in aliases if alias not in found.aliases]:
                with one_failure(target.url):
                    found.aliases = [*found.aliases, *new]
                    found.save()
            return target.artifact(name, found.version), False
        with open_run_at_server(target, place, job_type="push", name=f"push {name}") as run:
            import wandb

            artifact = wandb.Artifact(name, type=type, metadata={**(metadata or {}), "digest": digest})
            artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
            return f"{target.entity}/{target.project}/{send_artifact(run, artifact, ['latest', *aliases])}", True


def fetch_folder(source: str, to: Path, *, first: str, then: Callable[[], None]) -> dict[str, Any]:
    """Fetch the files of an artifact that a folder lacks, or has with other content.

    Args:
        source: ``[ENTITY/]PROJECT/NAME[:VERSION|ALIAS]`` (default: ``latest``).
        to: the folder.
        first: path of the file that is fetched first.
        then: called when it is there.

    Returns:
        The artifact's metadata, and its full name as ``artifact``.

    Raises:
        UserError: if ``source`` names no artifact, or it lacks the first file.
        Failure: if the server fails.
    """
    entity, project, name = _split(source)
    with files_of_wandb_in(to.parent):
        target = open_target(entity, project)
        full = target.artifact(name, "latest") if ":" not in name else f"{target.entity}/{target.project}/{name}"
        with one_failure(target.url):
            api = target.api()
            if not api.artifact_exists(full):
                raise UserError(f"wandb:{source}: {target.url} has no artifact {full}; check the name and the version")
            artifact = api.artifact(full)
            if first not in artifact.manifest.entries:
                raise UserError(f"wandb:{source}: neither a bundle nor a run that `vigil push` sent: it has no {first}")
            artifact.download(root=str(to), skip_cache=True, path_prefix=first)
            then()
            artifact.download(root=str(to), skip_cache=True)
            return {**artifact.metadata, "artifact": target.artifact(name.partition(":")[0], artifact.version)}


def add_metadata(target: Target, collection: str, digest: str, name: str, entries: Mapping[str, Any]) -> str | None:
    """Add entries to a mapping in the metadata of a version; those that it has with the same keys are replaced.

    Args:
        target: the project that has the version.
        collection: its collection.
        digest: its digest.
        name: name of the mapping.
        entries: the entries.

    Returns:
        Name and version at W&B; ``None`` if the server has no such version.

    Raises:
        Failure: if the server refuses or fails.
    """
    if (found := find_version(target, collection, digest)) is None:
        return None
    with one_failure(target.url):
        found.metadata = {**found.metadata, name: {**found.metadata.get(name, {}), **entries}}
        found.save()
    return f"{collection}:{found.version}"


def link_to_registry(target: Target, collection: str, digest: str, to: str, alias: str) -> str | None:
    """Let an alias of a registry point to a version, whatever it pointed to before; return its name there.

    Args:
        target: the project that has the version.
        collection: its collection.
        digest: its digest.
        to: ``[ENTITY/]REGISTRY/NAME``.
        alias: the alias, such as ``champion``.

    Returns:
        ``None`` if the server has no such version.

    Raises:
        UserError: if ``to`` is no such name.
        Failure: if the server refuses or fails.
    """
    path = registry_path(to)
    if (found := find_version(target, collection, digest)) is None:
        return None
    with one_failure(target.url):
        found.link(path, aliases=[alias])
    return f"{path}:{alias}"


def registry_path(name: str) -> str:
    """Return W&B's path of ``[ENTITY/]REGISTRY/NAME``.

    Raises:
        UserError: if it is no such name.
    """
    entity, registry, collection = _split(name)
    path = f"{REGISTRY_PREFIX}{registry.removeprefix(REGISTRY_PREFIX)}/{collection}"
    return path if entity is None else f"{entity}/{path}"


def _split(name: str) -> tuple[str | None, str, str]:
    parts = name.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise UserError(f"{name}: is no name at W&B; write [ENTITY/]PROJECT/NAME, such as team/moderation/scam")
    return (parts[0] if len(parts) == 3 else None), parts[-2], parts[-1]
