"""The page to try a bundle: one file that loads nothing from elsewhere and runs only its own script."""

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files("vigil_serving.server").joinpath("demo_page.html").read_text(encoding="utf-8")


def _hash_source(element: str) -> str:
    """Return the Content-Security-Policy source of the page's only ``<script>`` or ``<style>``."""
    [content] = re.findall(rf"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_hash_source('script')}",
        f"style-src {_hash_source('style')}",
        "connect-src 'self'",
        "img-src blob: data:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
