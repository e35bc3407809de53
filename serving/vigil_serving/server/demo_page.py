"""The page to try a bundle out: one file, nothing loaded from elsewhere, and nothing run but its own script."""

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files("vigil_serving.server").joinpath("demo_page.html").read_text(encoding="utf-8")


def _hash(element: str) -> str:
    """The content-security-policy source of the page's one ``<script>`` or ``<style>``."""
    [content] = re.findall(rf"<{element}>(.*?)</{element}>", PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_hash('script')}",
        f"style-src {_hash('style')}",
        "connect-src 'self'",
        "img-src blob: data:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""The header Content-Security-Policy."""
