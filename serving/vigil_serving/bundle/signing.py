"""Signature of a bundle: ed25519 over the manifest (RFC 8032), which proves the bundle's origin to a holder of the public key.

Keys are PEM files, as ``openssl genpkey -algorithm ed25519`` and ``openssl pkey -pubout`` write them. The package cryptography is
imported only when a key is used, so the runtime does not require it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_serving.bundle.manifest import MANIFEST, SIGNATURE_FILE, check_is_bundle

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def load_private_key(path: StrPath) -> "Ed25519PrivateKey":
    """Load the key that signs bundles.

    Raises:
        UserError: if it is missing, protected by a password, or not an ed25519 private key in PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _load_key(path, lambda data: load_pem_private_key(data, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an ed25519 private key; make one with `openssl genpkey -algorithm ed25519`")
    return key


def sign_bundle(bundle: StrPath, key: "Ed25519PrivateKey") -> None:
    """Sign a bundle's manifest and write manifest.sig; an older signature is replaced.

    Raises:
        UserError: if the folder is not a bundle.
    """
    bundle = Path(bundle)
    check_is_bundle(bundle)
    (bundle / SIGNATURE_FILE).write_bytes(key.sign((bundle / MANIFEST).read_bytes()))


def check_signature(bundle: StrPath, public_key: StrPath) -> None:
    """Check the signature of a bundle's manifest.

    Args:
        bundle: the bundle's folder; :func:`vigil_serving.bundle.manifest.check_files` checks the files against the manifest.
        public_key: PEM file.

    Raises:
        UserError: if the bundle is not signed, or not by the holder of this key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key: Ed25519PublicKey | Any = _load_key(public_key, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{public_key}: not an ed25519 public key; derive it with `openssl pkey -in KEY.pem -pubout`")
    bundle = Path(bundle)
    check_is_bundle(bundle)
    if not (bundle / SIGNATURE_FILE).is_file():
        raise UserError(f"{bundle} is not signed: it has no {SIGNATURE_FILE}; export it with --sign")
    try:
        key.verify((bundle / SIGNATURE_FILE).read_bytes(), (bundle / MANIFEST).read_bytes())
    except InvalidSignature:
        raise UserError(f"{bundle}: {SIGNATURE_FILE} is not a signature of this {MANIFEST} by the key {public_key}") from None


def _load_key(path: StrPath, parse: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{path}: not a key in PEM, or protected by a password") from None
