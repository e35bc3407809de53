"""The Hugging Face hub as a registry: one commit for each push, none for content that is there, and pulls by commit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vigil.workflows.tracking.pulled_folder import DOWNLOADS
from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import remove
from vigil_serving.bundle.manifest import MANIFEST

_OF_THE_HUB = (".gitattributes", DOWNLOADS)
"""What the hub and its library add to a folder."""


def push(folder: Path, repository: str, *, private: bool) -> tuple[str, bool]:
    """Push a folder with a manifest as the newest commit of a repository, which is made if there is none.

    Returns:
        The commit, and whether it is new.

    Raises:
        UserError: if the name is invalid, or the hub refuses access.
        Failure: if the hub cannot be reached or fails.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    if "@" in repository:
        raise UserError(f"hf:{repository}: the hub names the commit; leave @{repository.partition('@')[2]} out")
    with _one_line(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        head = api.repo_info(repository).sha
        if head is not None and _manifest_at(repository, head) == (folder / MANIFEST).read_bytes():
            return head, False
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"vigil push {folder.name}",
            delete_patterns="*",
        )
        return str(commit.oid), True


def pull(place: str, to: Path, keep: Callable[[], None]) -> str:
    """Fetch the files of a repository that a folder lacks, and return the commit.

    Args:
        place: ``ORG/NAME``, or ``ORG/NAME@REVISION`` with a branch, tag or commit.
        to: a folder, empty or left by an earlier try.
        keep: called when the manifest is there; removes other files that are not of this commit.

    Raises:
        UserError: if there is no such repository or revision, it has no manifest, or the hub refuses access.
        Failure: if the hub cannot be reached or fails.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = place.partition("@")
    with _one_line(place):
        commit = HfApi().repo_info(repository, revision=revision or None).sha
        try:
            hf_hub_download(repository, MANIFEST, revision=commit, local_dir=to)
        except EntryNotFoundError:
            raise UserError(f"hf:{place}: neither a bundle nor a run that `vigil push` sent: it has no {MANIFEST}") from None
        keep()
        snapshot_download(repository, revision=commit, local_dir=to)
    for name in _OF_THE_HUB:
        if (to / name).exists():
            remove(to / name)
    return str(commit)


def _manifest_at(repository: str, commit: str) -> bytes | None:
    """Return the manifest in a commit, if it has one."""
    import tempfile

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with tempfile.TemporaryDirectory() as place:
        try:
            return Path(hf_hub_download(repository, MANIFEST, revision=commit, local_dir=place)).read_bytes()
        except EntryNotFoundError:
            return None


@contextmanager
def _one_line(place: str) -> Iterator[None]:
    """Raise what the hub's library raises as one line that states what to do, and let it draw no bars of its own."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of its HTTP library
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    name, drawn = f"hf:{place}", not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except HFValidationError:
        raise UserError(f"{name}: invalid repository name; write hf:ORG/NAME") from None
    except (GatedRepoError, LocalTokenNotFoundError):
        raise UserError(f"{name}: the hub refuses access; run `hf auth login`") from None
    except RevisionNotFoundError:
        raise UserError(f"{name}: no such branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise UserError(f"{name}: no such repository, or it is private; for a private one run `hf auth login`") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        if status in (401, 403):
            hint = "run `hf auth login` with a token that may write"
            raise UserError(f"{name}: the hub refuses access (HTTP {status}); {hint}") from None
        raise Failure(f"{name}: the hub answers HTTP {status}; run the same command again") from error
    except (UserError, Failure):
        raise
    except (HTTPError, OSError) as error:  # of the network, and of the disk
        reason = str(error).strip().splitlines()
        raise Failure(f"{name}: {reason[0] if reason else type(error).__name__}; run the same command again") from error
    finally:
        if drawn:
            enable_progress_bars()
