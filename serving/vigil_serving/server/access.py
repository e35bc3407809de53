"""Access to the server: API keys, and the headers Host and Origin.

A browser sends Host and Origin with its requests, and a page cannot change them. Host reveals DNS rebinding: a foreign name that
was pointed at this server. Origin reveals requests of pages from elsewhere. Both are refused unless they are allowed.
"""

import base64
import hashlib
import hmac
import ipaddress
import logging
import re
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_serving.protocol.errors import RequestError

_log = logging.getLogger("vigil.serve")

MIN_KEY_CHARACTERS = 16
FILE_CHECK_SECONDS = 1.0
"""How often the file of the API keys is checked for changes, at most."""
HEALTH_PATHS = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
"""Open to everyone under every host: probes send neither keys nor names."""
KEYLESS_PATHS = frozenset({"/", "/v1/reload"})
"""The page, which asks for the key, and reloading, which takes the admin token."""
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response."""
DEFAULT_PORTS = {"http": 80, "https": 443}
CORS_HEADERS = {"Access-Control-Expose-Headers": "Inference-Header-Content-Length, Retry-After", "Vary": "Origin"}
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Inference-Header-Content-Length",
    "Access-Control-Max-Age": "600",
}

_KEY = re.compile(rf"[!-~]{{{MIN_KEY_CHARACTERS},}}")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._*-]+))(?::([0-9]{1,5}))?")


def check_key(key: str, where: str) -> str:
    """Return a secret that clients send as a bearer token.

    Args:
        key: the secret.
        where: where it was given, for the error.

    Raises:
        UserError: if it is short or has characters that a header cannot carry; the message does not repeat it.
    """
    if not _KEY.fullmatch(key):
        raise UserError(
            f"{where}: must have at least {MIN_KEY_CHARACTERS} visible ASCII characters; create one with `openssl rand -hex 32`"
        )
    return key


def bearer_token(authorization: str) -> bytes | None:
    """Return the token of the header Authorization, if its scheme is Bearer."""
    scheme, _, token = authorization.partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else None


class ApiKeys:
    """API keys; a client sends any one of them.

    A file is read again when it changes, so that keys are rotated without a restart. If the new content is refused, the log has
    the reason and the previous keys stay.

    Args:
        keys: the keys.
        path: file with one key a line; blank lines and lines that start with ``#`` are skipped.

    Raises:
        UserError: if the file cannot be read or has no keys.
    """

    def __init__(self, keys: Iterable[str] = (), path: StrPath | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._digests = [_digest(key.encode()) for key in keys]
        self._version: tuple[int, int, int] | None = None
        self._next_check = 0.0
        if self._path is not None:
            self._version = _version(self._path)
            self._digests = _read(self._path)
            if self._path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
                _log.warning("%s: every user of this machine can access the API keys; `chmod o= %s`", self._path, self._path)

    def accept(self, authorization: str) -> bool:
        """Return whether the header Authorization has one of the keys; the time does not depend on the keys."""
        self._reread_if_changed()
        token = bearer_token(authorization)
        given = _digest(token or b"")
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return token is not None and any(found)

    def reread(self) -> None:
        """Read the file again, whether or not it has changed."""
        self._version, self._next_check = None, 0.0
        self._reread_if_changed()

    def _reread_if_changed(self) -> None:
        if self._path is None or time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + FILE_CHECK_SECONDS
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._digests = _read(self._path)
            _log.info("%s: %d API keys", self._path, len(self._digests))
        except UserError as refused:
            _log.error("API keys not replaced: %s", refused)


def _digest(key: bytes) -> bytes:
    """Return a hash of fixed length, so that comparing it does not reveal the length of a key."""
    return hashlib.sha256(key).digest()


def _version(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced; ``None`` if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> list[bytes]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read the API keys: {error.strerror}; check --api-key-file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; a file of API keys is text with one key a line") from None
    keys = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    keys = [(number, key) for number, key in keys if key and not key.startswith("#")]
    if not keys:
        raise UserError(f"{path}: no API keys; write one a line")
    return [_digest(check_key(key, f"{path}:{number}").encode()) for number, key in keys]


def content_security_policy(page: str) -> str:
    """Return the header Content-Security-Policy of a page that loads nothing from elsewhere and runs only its own script.

    Args:
        page: HTML with one ``<script>`` and one ``<style>``; media are shown from ``blob:``, images also from ``data:``.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash_source(page, 'script')}",
            f"style-src {_hash_source(page, 'style')}",
            "connect-src 'self'",
            "img-src blob: data:",
            "media-src blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hash_source(page: str, element: str) -> str:
    [content] = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


class Authority(NamedTuple):
    """Host, as a name in lower case or a normalised address, and port, as in the header Host."""

    host: str
    port: int | None


def parse_authority(text: str) -> Authority | None:
    """Return host and port of ``HOST[:PORT]``, such as ``localhost:8000`` or ``[::1]:8000``; ``None`` for any other form."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    address, name, port = found.groups()
    host = (address or name).lower().removesuffix(".")
    parsed = _address(host)
    if address is not None and parsed is None:
        return None
    return Authority(host if parsed is None else str(parsed), None if port is None else int(port))


def is_loopback(host: str) -> bool:
    """Return whether a host, without brackets, is a loopback address or one of its names."""
    address = _address(host)
    return (host == "localhost" or host.endswith(".localhost")) if address is None else address.is_loopback


class AccessControl:
    """Checks who sends a request, before its body is read.

    Allowed hosts: loopback names and addresses; the address that the server listens on, or every address if it listens on all;
    and ``hosts``. Allowed origins: pages of this server itself; and ``origins``.

    Args:
        bound_to: address or name that the server listens on.
        keys: accepted API keys (default: none are needed).
        hosts: other names of the server; ``*.example.com`` are all subdomains, ``*`` is any name.
        origins: origins of other sites whose pages may use the server, such as ``https://app.example.com``.

    Raises:
        UserError: if a host or an origin has another form.
    """

    def __init__(
        self, bound_to: str, keys: ApiKeys | None = None, hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        self._bound_to = bound_to.lower()
        self._keys = keys
        self._hosts = [_host_pattern(host) for host in hosts]
        self._origins = [_origin_pattern(origin) for origin in origins]

    def reread_keys(self) -> None:
        """Read the file of the API keys again."""
        if self._keys is not None:
            self._keys.reread()

    def check(self, scope: Scope) -> None:
        """Check the headers of a request.

        Raises:
            RequestError: 400 or 421 because of Host, 403 because of Origin, 401 because of the API key.
        """
        if scope["path"] in HEALTH_PATHS:
            return
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = parse_authority(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            raise RequestError(400, "Host: must be sent once, as NAME or NAME:PORT", "host")
        if not self._allows_host(host.host):
            raise RequestError(
                421, "Host: this is not a name of this server; allow it with `vigil serve --allow-host NAME`", "host"
            )
        if (origin := headers.get("origin")) is not None and not self._allows_origin(origin, host):
            raise RequestError(
                403, "Origin: pages of other sites are refused; allow one with `vigil serve --allow-origin URL`", "origin"
            )
        if self._keys is None or scope["path"] in KEYLESS_PATHS or self.is_preflight(scope):
            return
        if not self._keys.accept(headers.get("authorization", "")):
            raise RequestError(401, "Authorization: send an API key as Bearer", "unauthorised", {"WWW-Authenticate": "Bearer"})

    def is_preflight(self, scope: Scope) -> bool:
        """Return whether a browser asks for permission to send a request of another site's page."""
        headers = Headers(scope=scope)
        return bool(scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers)

    def cors_headers(self, scope: Scope) -> Mapping[str, str]:
        """Return the headers that let a browser give the response to the page of an allowed origin."""
        origin = Headers(scope=scope).get("origin")
        if origin is None or not self._is_listed(origin):
            return {}
        return {"Access-Control-Allow-Origin": origin, **CORS_HEADERS}

    def _allows_host(self, host: str) -> bool:
        if is_loopback(host) or host == self._bound_to or any(_matches(pattern, host) for pattern in self._hosts):
            return True
        bound_to, address = _address(self._bound_to), _address(host)
        return address is not None and bound_to is not None and (bound_to.is_unspecified or bound_to == address)

    def _allows_origin(self, origin: str, host: Authority) -> bool:
        """Compare with Host by the origin's scheme: a proxy that ends TLS leaves the server with another one."""
        found = _parse_origin(origin)
        if found is None:
            return False
        scheme, authority = found
        same = authority.host == host.host and authority.port == (DEFAULT_PORTS[scheme] if host.port is None else host.port)
        return same or self._is_listed(origin)

    def _is_listed(self, origin: str) -> bool:
        found = _parse_origin(origin)
        return found is not None and any(
            scheme == found[0] and pattern.port == found[1].port and _matches(pattern.host, found[1].host)
            for scheme, pattern in self._origins
        )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _matches(pattern: str, name: str) -> bool:
    return pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))


def _host_pattern(text: str) -> str:
    bare = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
    found = parse_authority(bare)
    if found is None or found.port is not None or not _is_pattern(found.host):
        raise UserError(
            f"--allow-host {text}: must be a name without scheme and port, such as vigil.example.com or *.example.com"
        )
    return found.host


def _origin_pattern(text: str) -> tuple[str, Authority]:
    found = _parse_origin(text)
    if found is None or not _is_pattern(found[1].host) or found[1].host == "*":
        raise UserError(f"--allow-origin {text}: must be a scheme and a name without a path, such as https://app.example.com")
    return found


def _is_pattern(host: str) -> bool:
    """Return whether a host has no ``*`` but the one of all subdomains."""
    return host == "*" or "*" not in host.removeprefix("*.")


def _parse_origin(text: str) -> tuple[str, Authority] | None:
    """Return scheme, and host and port, of an origin; the port is filled in."""
    scheme, separator, rest = text.partition("://")
    authority = parse_authority(rest)
    if not separator or scheme.lower() not in DEFAULT_PORTS or authority is None:
        return None
    scheme = scheme.lower()
    return scheme, Authority(authority.host, DEFAULT_PORTS[scheme] if authority.port is None else authority.port)
