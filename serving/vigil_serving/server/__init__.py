"""HTTP server for a bundle (``vigil serve``): micro-batching, back-pressure, reloads, shadow scoring, KServe V2; without PyTorch.

Example:
    >>> from vigil_serving.server import ServerSettings, serve
    >>> serve(ServerSettings("bundles/demo", host="127.0.0.1", port=8000))
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_serving.server.app import create_app as create_app
    from vigil_serving.server.main import serve as serve
    from vigil_serving.server.service import Service as Service
    from vigil_serving.server.settings import RequestLimits as RequestLimits
    from vigil_serving.server.settings import ServerSettings as ServerSettings

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "RequestLimits": "vigil_serving.server.settings",
        "ServerSettings": "vigil_serving.server.settings",
        "Service": "vigil_serving.server.service",
        "create_app": "vigil_serving.server.app",
        "serve": "vigil_serving.server.main",
    },
)
