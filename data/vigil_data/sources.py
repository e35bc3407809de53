"""Resolution of a recipe's files: a local path, a file of an installed package, or the hub's cache."""

import importlib.util
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import why_not_a_file
from vigil_data.source_specs import Hub, Local, Package, Source

_NEVER_READ = ("*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.gguf", "*.mlmodel", "*openvino*", "coreml/*")
"""Weight formats in hub repositories that Vigil does not read; skipping them saves gigabytes."""


def resolve(source: Source) -> Path:
    """Return the absolute path of a source's file or folder, downloading it if it is on the hub and not in the hub's cache.

    Args:
        source: the source in the recipe. A package is found without importing it.

    Raises:
        UserError: if it does not exist, the package is not installed, or the hub refuses access or cannot be reached.
    """
    if isinstance(source, Local):
        return _local(source)
    if isinstance(source, Package):
        return _package(source)
    return _hub(source)


def _local(source: Local) -> Path:
    path = Path(source.path).expanduser().absolute()
    if not path.exists():
        why = why_not_a_file(path)
        raise UserError(f"{source.path}: {'no such file or folder' if why == 'does not exist' else why} (looked at {path})")
    return path


def _package(source: Package) -> Path:
    # Finding a dotted name would import its parents, so the inner names are followed as folders.
    top, *inner = source.package.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None:
        raise UserError(f"package {source.package}: not installed; install it or name another source")
    folders = [Path(folder).joinpath(*inner) for folder in spec.submodule_search_locations or ()]
    if not folders:
        raise UserError(f"package {source.package}: is a single module without files; name another source")
    for folder in folders:
        if (folder / source.path).exists():
            return (folder / source.path).absolute()
    raise UserError(f"package {source.package}: has no file or folder {source.path or '.'} (looked in {folders[0]})")


def _hub(source: Hub) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name = f"hub {source.id}" + (f" at {source.revision}" if source.revision else "")
    wanted = [source.path, f"{source.path.rstrip('/')}/*"] if source.path else None
    try:
        folder = Path(
            snapshot_download(
                source.id, revision=source.revision, allow_patterns=wanted, ignore_patterns=None if wanted else list(_NEVER_READ)
            )
        )
    except GatedRepoError:
        raise UserError(f"{name}: gated; accept its licence on the hub, then run `hf auth login`") from None
    except RevisionNotFoundError:
        raise UserError(f"{name}: no such branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise UserError(f"{name}: no such repository, or it is private; for a private one run `hf auth login`") from None
    except HFValidationError:
        raise UserError(f"{name}: invalid repository name; write owner/name") from None
    except OSError as error:  # the hub's network errors and the cache's are all of this class
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name}: cannot be downloaded and is not in the cache ({reason})") from None
    if not (folder / source.path).exists():
        raise UserError(f"{name}: has no file or folder {source.path}, or it is not in the cache and the hub cannot be reached")
    return folder / source.path
