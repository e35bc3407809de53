"""The bundle: the folder that `vigil export` writes and a server loads.

Example:
    >>> from vigil_serving.bundle import load_bundle
    >>> bundle = load_bundle("bundles/demo", public_key="owner.pub.pem")
    >>> bundle.metadata.lineage, bundle.thresholds
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_serving.bundle.load import Bundle as Bundle
    from vigil_serving.bundle.load import ExportedModel as ExportedModel
    from vigil_serving.bundle.load import load_bundle as load_bundle
    from vigil_serving.bundle.manifest import check_files as check_files
    from vigil_serving.bundle.manifest import is_bundle as is_bundle
    from vigil_serving.bundle.metadata import BundleMetadata as BundleMetadata
    from vigil_serving.bundle.metadata import Candidate as Candidate
    from vigil_serving.bundle.metadata import Licence as Licence
    from vigil_serving.bundle.metadata import Parity as Parity
    from vigil_serving.bundle.metadata import Tolerance as Tolerance
    from vigil_serving.bundle.save import read_taxonomy as read_taxonomy
    from vigil_serving.bundle.signing import check_signature as check_signature
    from vigil_serving.bundle.signing import load_private_key as load_private_key
    from vigil_serving.bundle.signing import sign_bundle as sign_bundle

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Bundle": "vigil_serving.bundle.load",
        "BundleMetadata": "vigil_serving.bundle.metadata",
        "Candidate": "vigil_serving.bundle.metadata",
        "ExportedModel": "vigil_serving.bundle.load",
        "Licence": "vigil_serving.bundle.metadata",
        "Parity": "vigil_serving.bundle.metadata",
        "Tolerance": "vigil_serving.bundle.metadata",
        "check_files": "vigil_serving.bundle.manifest",
        "check_signature": "vigil_serving.bundle.signing",
        "is_bundle": "vigil_serving.bundle.manifest",
        "load_bundle": "vigil_serving.bundle.load",
        "load_private_key": "vigil_serving.bundle.signing",
        "read_taxonomy": "vigil_serving.bundle.save",
        "sign_bundle": "vigil_serving.bundle.signing",
    },
)
