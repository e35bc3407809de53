"""What ``vigil serve`` can be told; everything has a default but the bundle."""

from dataclasses import dataclass, field
from pathlib import Path

from vigil_data.errors import UserError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold; all of it is checked before anything is decoded.

    Attributes:
        bytes: of the body.
        items: of the request.
        media: pictures and sounds of all its items together.
        pixels: of all its pictures together.
        seconds: of all its sounds together.
        characters: of all its ids, texts and columns together.
    """

    bytes: int = 32 * MIB
    items: int = 64
    media: int = 64
    pixels: int = 90_000_000
    seconds: float = 3600.0
    characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """How a bundle is served.

    Attributes:
        bundle: the bundle's folder, or a symbolic link to it.
        variant: which form of the encoders runs.
        threads: threads within an operator; ONNX Runtime's default if ``None``.
        workers: batches that are scored at the same time.
        max_batch: items that are scored together.
        max_wait: seconds that a lone item waits for others.
        queue: items that may wait; a request that does not fit is told to come again.
        limits: what one request may hold.
        shadow: a second bundle, scored on the same items beside the answers.
        shadow_log: where its differences are written, one JSON object a line.
        shadow_tolerance: the largest difference of a probability that is none.
        admin_token: who knows it may reload; nobody may if ``None``.
        drain_seconds: the longest that a stopping server waits for its answers.
        upload_seconds: the longest that a body may take to arrive.
        public_key: the key by which bundles must be signed.
    """

    bundle: Path
    variant: str = "fp32"
    threads: int | None = None
    workers: int = 2
    max_batch: int = 32
    max_wait: float = 0.004
    queue: int = 256
    limits: Limits = field(default_factory=Limits)
    shadow: Path | None = None
    shadow_log: Path | None = None
    shadow_tolerance: float = 1e-3
    admin_token: str | None = None
    drain_seconds: float = 30.0
    upload_seconds: float = 30.0
    public_key: Path | None = None

    def __post_init__(self) -> None:
        if self.queue < self.limits.items:
            raise UserError(
                f"--queue {self.queue}: a request of --max-items {self.limits.items} would never fit; make the queue longer"
            )
        if self.shadow_log is not None and self.shadow is None:
            raise UserError(f"--shadow-log {self.shadow_log}: there is nothing to log without --shadow BUNDLE")
        if self.admin_token is not None and len(self.admin_token) < 16:
            raise UserError("--admin-token: shorter than 16 characters; make one with `openssl rand -hex 16`")

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that may be in memory at the same time."""
        return 8 * self.limits.bytes
