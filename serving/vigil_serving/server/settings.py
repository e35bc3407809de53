"""Settings of ``vigil serve``; everything except the bundle has a default."""

from dataclasses import dataclass, field

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath

MIB = 1024 * 1024
MIN_ADMIN_TOKEN_CHARACTERS = 16


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
        admin_token: bearer token that allows reloading over HTTP (default: reloading over HTTP is off).
        drain_seconds: maximum time to answer open requests when the server stops.
        upload_seconds: maximum time for a body to arrive.
        public_key: PEM file of the key that must have signed the bundles.
    """

    bundle: StrPath
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
    admin_token: str | None = None
    drain_seconds: float = 30.0
    upload_seconds: float = 30.0
    public_key: StrPath | None = None

    def __post_init__(self) -> None:
        if self.queue < self.limits.items:
            raise UserError(
                f"--queue {self.queue}: a request of --max-items {self.limits.items} does not fit; choose a longer queue"
            )
        if self.shadow_log is not None and self.shadow is None:
            raise UserError(f"--shadow-log {self.shadow_log}: needs --shadow BUNDLE")
        if self.admin_token is not None and len(self.admin_token) < MIN_ADMIN_TOKEN_CHARACTERS:
            raise UserError(
                f"--admin-token: shorter than {MIN_ADMIN_TOKEN_CHARACTERS} characters; create one with `openssl rand -hex 16`"
            )

    @property
    def body_memory_bytes(self) -> int:
        """Maximum bytes of all request bodies in memory."""
        return 8 * self.limits.bytes
