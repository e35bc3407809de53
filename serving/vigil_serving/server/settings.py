"""Settings of ``vigil serve``; everything except the bundle has a default."""

from dataclasses import dataclass, field

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_serving.server.access import check_key, is_loopback
from vigil_serving.traffic.options import TrafficLogOptions

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of one request, all checked before anything is decoded.

    Attributes:
        bytes: bytes of the body.
        items: items of the request.
        media: images and audio files of all items together.
        pixels: pixels of all images together.
        seconds: seconds of all audio together.
        characters: characters of all ids, texts and columns together.
    """

    bytes: int = 32 * MIB
    items: int = 64
    media: int = 64
    pixels: int = 90_000_000
    seconds: float = 3600.0
    characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a bundle is served.

    Attributes:
        bundle: the bundle's folder, or a symbolic link to it.
        host: address to listen on.
        port: port to listen on; 0 takes a free one, which is logged.
        api_keys: keys; a client must send any one of them (default: none, which is allowed on loopback addresses).
        api_key_file: file with the keys, one a line, which is read again when it changes.
        no_auth: listen on an address that others can reach without API keys.
        allow_hosts: other names of the server in the header Host.
        allow_origins: origins of other sites whose pages may use the server.
        tls_cert: PEM file of the certificate chain (default: no TLS).
        tls_key: PEM file of its private key.
        variant: variant of the encoders.
        threads: threads within an operator (default: all cores).
        workers: batches scored at the same time.
        max_batch: maximum items per batch.
        max_wait: seconds that the first item of a batch waits for others.
        queue: maximum items waiting; a request that does not fit gets 429.
        limits: limits of one request.
        shadow: a second bundle, scored on the same items after they were answered.
        shadow_log: file for its differences, one JSON object a line.
        shadow_tolerance: largest difference of a probability that does not count.
        log: the traffic log: where decisions are logged, and for how long (default: nowhere).
        admin_token: bearer token that allows reloading over HTTP (default: reloading over HTTP is off).
        drain_seconds: maximum time to answer open requests when the server stops.
        upload_seconds: maximum time for the head of a request to arrive, and for its body.
        max_connections: maximum open connections; requests on others get 503.
        public_key: PEM file of the key that must have signed the bundles.
        policy_text: file of policy texts that a guard reads in place of the bundle's; read again at each reload.
    """

    bundle: StrPath
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    api_key_file: StrPath | None = None
    no_auth: bool = False
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    tls_cert: StrPath | None = None
    tls_key: StrPath | None = None
    variant: str = "fp32"
    threads: int | None = None
    workers: int = 2
    max_batch: int = 32
    max_wait: float = 0.004
    queue: int = 256
    limits: RequestLimits = field(default_factory=RequestLimits)
    shadow: StrPath | None = None
    shadow_log: StrPath | None = None
    shadow_tolerance: float = 1e-3
    log: TrafficLogOptions | None = None
    admin_token: str | None = field(default=None, repr=False)
    drain_seconds: float = 30.0
    upload_seconds: float = 30.0
    max_connections: int = 1000
    public_key: StrPath | None = None
    policy_text: StrPath | None = None

    def __post_init__(self) -> None:
        if self.queue < self.limits.items:
            raise UserError(
                f"--queue {self.queue}: a request of --max-items {self.limits.items} does not fit; choose a longer queue"
            )
        if self.shadow_log is not None and self.shadow is None:
            raise UserError(f"--shadow-log {self.shadow_log}: needs --shadow BUNDLE")
        if self.admin_token is not None:
            check_key(self.admin_token, "VIGIL_ADMIN_TOKEN")
        for number, key in enumerate(self.api_keys, 1):
            check_key(key, f"VIGIL_API_KEY, key {number}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UserError("--tls-cert and --tls-key: give both, or neither")
        self._check_authentication()

    def _check_authentication(self) -> None:
        if self.api_keys and self.api_key_file is not None:
            raise UserError(f"--api-key-file {self.api_key_file}: VIGIL_API_KEY is set too; give keys in one place")
        if self.needs_key and self.no_auth:
            raise UserError("--no-auth: API keys are given; leave out one of them")
        if not self.needs_key and not self.no_auth and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host}: others can reach this address, and no API key is set; set VIGIL_API_KEY or --api-key-file, "
                "or pass --no-auth if a proxy or a firewall decides who may use the server"
            )

    @property
    def needs_key(self) -> bool:
        """Whether clients must send an API key."""
        return bool(self.api_keys) or self.api_key_file is not None

    @property
    def body_memory_bytes(self) -> int:
        """Maximum bytes of all request bodies in memory."""
        return 8 * self.limits.bytes
