"""The bundle that decides: loaded beside the running one, checked on its golden cases, and swapped in at one stroke."""

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vigil_data.errors import Failure, UserError
from vigil_serving.bundle.manifest import is_bundle
from vigil_serving.parity import golden
from vigil_serving.parity.compare import TOLERANCES
from vigil_serving.protocol.errors import RequestError, unavailable
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.server.metrics import Telemetry

_log = logging.getLogger("vigil.serve")

LOOSE = 0.2
"""How far a quantised form may be from the trained model's probability of a golden case: it is near, or something is broken."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBundle:
    """A bundle, ready to decide.

    Attributes:
        path: its folder, links followed.
        scorer: decides.
    """

    path: Path
    scorer: Scorer

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.scorer.bundle.signature.name

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle's manifest."""
        return self.scorer.bundle.digest

    @property
    def version(self) -> str:
        """The digest's beginning: what the KServe protocol calls a version."""
        return self.digest[:12]

    @property
    def policy(self) -> str | None:
        """Name and version of its policy, if it has one."""
        policy = self.scorer.bundle.policy
        return None if policy is None else policy.title


def load(path: Path, variant: str, threads: int | None, public_key: Path | None = None) -> LoadedBundle:
    """Load a bundle: its hashes are recomputed, and it must decide its golden cases as the trained model did.

    Args:
        path: the folder, or a link to it.
        variant: which form of the encoders.
        threads: threads within an operator.
        public_key: the key by which it must be signed.

    Raises:
        UserError: if it is no bundle, was altered, is not signed, or decides otherwise.
    """
    resolved = path.resolve()  # a link that is switched meanwhile must not mix two bundles
    if not is_bundle(resolved):
        raise UserError(f"{path} is not a bundle; make one with `vigil export`")
    loaded = LoadedBundle(resolved, Scorer(resolved, threads, variant=variant, public_key=public_key))
    cases, expected = golden.read(resolved)
    allowed = TOLERANCES[variant].difference if variant == "fp32" else LOOSE
    for case, expected_NL in zip(cases, expected, strict=True):
        found_NL = loaded.scorer.raw_probabilities(case.items)
        if found_NL.shape != expected_NL.shape or not np.allclose(found_NL, expected_NL, rtol=0, atol=allowed):
            raise UserError(f"{path}: decides the golden case {case.name} otherwise than the trained model; run `vigil verify`")
    return loaded


class Bundles:
    """Which bundle decides, and how it is replaced.

    Args:
        path: where it lies; read anew by :meth:`reload` without another path.
        loading: loads a bundle, in a thread.
        telemetry: counts.
    """

    def __init__(self, path: Path, loading: Callable[[Path], LoadedBundle], telemetry: Telemetry) -> None:
        self.path, self._loading, self._telemetry = path, loading, telemetry
        self._loaded: LoadedBundle | None = None
        self.busy = False
        self.refused: str | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a bundle that decides."""
        return self._loaded is not None

    def current(self) -> LoadedBundle:
        """The bundle that decides now.

        Raises:
            RequestError: 503, while the first one is loading.
        """
        if self._loaded is None:
            raise unavailable("the bundle is loading; try again later", "loading")
        return self._loaded

    async def reload(self, path: Path | None = None) -> LoadedBundle:
        """Load a bundle beside the one that decides, and let it decide from now on; the old one finishes the batches it began.

        Args:
            path: where it lies; where the present one came from if not given.

        Returns:
            The new one.

        Raises:
            RequestError: 409, while another is loading.
            UserError: if the bundle is refused; the old one goes on.
        """
        if self.busy:
            raise RequestError(409, "a bundle is being loaded already; try again later", "busy")
        self.busy, path = True, path or self.path
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(None, functools.partial(self._loading, path))
        except Exception as error:
            lines = error.lines if isinstance(error, UserError) else [str(error)] if isinstance(error, Failure) else []
            self.refused = "; ".join(lines) or f"{path}: cannot be loaded: {type(error).__name__}"
            self._telemetry.reload("refused")
            _log.error("bundle refused: %s", self.refused)
            raise UserError(self.refused) from None
        finally:
            self.busy = False
        self.path, self._loaded, self.refused = path, loaded, None
        self._telemetry.serves(loaded.name, loaded.digest, loaded.policy)
        self._telemetry.reload("loaded")
        _log.info("bundle %s, digest %s, decides from now on", loaded.name, loaded.digest)
        return loaded
