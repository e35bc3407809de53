"""Parity: compare an exported model with the trained one, on outputs and on decisions.

Example:
    >>> from vigil_serving.parity import verify_bundle
    >>> verify_bundle("bundles/demo").parity
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_serving.parity.backends import load_backends as load_backends
    from vigil_serving.parity.compare import Backend as Backend
    from vigil_serving.parity.compare import ParityError as ParityError
    from vigil_serving.parity.compare import compare_outputs as compare_outputs
    from vigil_serving.parity.golden import GoldenCases as GoldenCases
    from vigil_serving.parity.golden import check_golden_outputs as check_golden_outputs
    from vigil_serving.parity.golden import read_golden as read_golden
    from vigil_serving.parity.verify import Verification as Verification
    from vigil_serving.parity.verify import verify_bundle as verify_bundle

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Backend": "vigil_serving.parity.compare",
        "GoldenCases": "vigil_serving.parity.golden",
        "ParityError": "vigil_serving.parity.compare",
        "Verification": "vigil_serving.parity.verify",
        "check_golden_outputs": "vigil_serving.parity.golden",
        "compare_outputs": "vigil_serving.parity.compare",
        "load_backends": "vigil_serving.parity.backends",
        "read_golden": "vigil_serving.parity.golden",
        "verify_bundle": "vigil_serving.parity.verify",
    },
)
