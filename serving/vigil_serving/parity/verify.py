"""``vigil verify``: check that a bundle is unaltered and decides on this machine as the trained model did."""

from dataclasses import dataclass

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback
from vigil_serving.bundle.load import Bundle, load_bundle
from vigil_serving.bundle.manifest import list_files
from vigil_serving.bundle.metadata import Parity
from vigil_serving.parity.backends import load_backends
from vigil_serving.parity.golden import check_golden_outputs, decision_differences, decoding_differences, read_golden


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a verification.

    Attributes:
        digest: SHA-256 of manifest.json, which identifies the complete bundle; a deployment can pin it.
        files: number of files whose hashes were recomputed.
        parity: agreement of each backend with the golden outputs.
    """

    digest: str
    files: int
    parity: tuple[Parity, ...]


def verify_bundle(path: StrPath, progress: ProgressCallback | None = None, public_key: StrPath | None = None) -> Verification:
    """Recompute all hashes, decode the golden items, and run every backend on the golden cases.

    Args:
        path: the bundle's folder.
        progress: called with (task, done, total).
        public_key: PEM file; the bundle must be signed by the holder of this key.

    Raises:
        UserError: for files changed, missing or added, a wrong signature, or a backend that disagrees with the golden outputs.
    """
    report = progress or (lambda *_: None)
    report("hashes", 0, None)
    bundle = load_bundle(path, public_key=public_key)
    golden = read_golden(bundle.path)
    report("decoding", 0, None)
    if differences := decoding_differences(golden.cases, bundle.inputs):
        raise UserError(*(f"{path}: {line}" for line in differences), f"{path}: {_exporting_versions(bundle)}")
    if differences := decision_differences(golden, bundle):
        raise UserError(*(f"{path}: {line}" for line in differences))
    parity = check_golden_outputs(bundle, load_backends(bundle), golden, progress)
    return Verification(bundle.digest, len(list_files(bundle.path)), parity)


def _exporting_versions(bundle: Bundle) -> str:
    libraries = ("tokenizers", "pillow", "soundfile", "soxr")
    return "exported with " + ", ".join(f"{name} {bundle.metadata.versions.get(name, 'unknown')}" for name in libraries)
