"""An ed25519 signature over the manifest (RFC 8032): proof of origin for whoever holds the public key.

Keys are PEM files, as ``openssl genpkey -algorithm ed25519`` and ``openssl pkey -pubout`` write them. The package cryptography is
imported when a bundle is sealed or a key is given, and not before: the runtime does without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import UserError
from vigil_serving.bundle.manifest import MANIFEST, SEAL, refuse_other

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def load_private_key(path: Path) -> "Ed25519PrivateKey":
    """Load the key that seals bundles.

    Raises:
        UserError: if it is absent, protected by a password, or no ed25519 private key in PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _load(path, lambda data: load_pem_private_key(data, None))
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an ed25519 private key; make one with `openssl genpkey -algorithm ed25519`")
    return key


def seal(bundle: Path, key: "Ed25519PrivateKey") -> None:
    """Sign a bundle's manifest, in manifest.sig; an older signature is replaced.

    Raises:
        UserError: if the folder is not a bundle.
    """
    refuse_other(bundle)
    (bundle / SEAL).write_bytes(key.sign((bundle / MANIFEST).read_bytes()))


def check_seal(bundle: Path, public_key: Path) -> None:
    """Check a bundle's signature.

    Args:
        bundle: its folder; :func:`vigil_serving.bundle.manifest.check_files` checks the files against the manifest.
        public_key: a PEM file.

    Raises:
        UserError: if the bundle is not signed, or not by the holder of this key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key: Ed25519PublicKey | Any = _load(public_key, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{public_key}: not an ed25519 public key; get it with `openssl pkey -in KEY.pem -pubout`")
    refuse_other(bundle)
    if not (bundle / SEAL).is_file():
        raise UserError(f"{bundle} is not signed: it has no {SEAL}; export it with --sign")
    try:
        key.verify((bundle / SEAL).read_bytes(), (bundle / MANIFEST).read_bytes())
    except InvalidSignature:
        raise UserError(f"{bundle}: {SEAL} is not a signature of this {MANIFEST} by the key {public_key}") from None


def _load(path: Path, read: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return read(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{path}: not a key in PEM, or one that asks for a password") from None
