"""The bundle that decides: a new one is loaded and checked while the current one decides, and then replaces it."""

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import StrPath
from vigil_serving.bundle.manifest import is_bundle
from vigil_serving.bundle.policy_text_file import read_policy_text
from vigil_serving.parity.compare import runtime_backend
from vigil_serving.parity.golden import check_golden_outputs
from vigil_serving.protocol.errors import RequestError, unavailable
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.server.metrics import ServerMetrics
from vigil_serving.traffic.options import Origin, Role

_log = logging.getLogger("vigil.serve")


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBundle:
    """A loaded bundle.

    Attributes:
        path: its folder, with links resolved.
        scorer: the bundle's scorer.
    """

    path: Path
    scorer: Scorer

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.scorer.bundle.metadata.name

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle's manifest."""
        return self.scorer.bundle.digest

    @property
    def version(self) -> str:
        """First twelve characters of the digest: the version in the KServe protocol."""
        return self.digest[:12]

    @property
    def policy(self) -> str | None:
        """Name and version of the bundle's policy, if it has one."""
        policy = self.scorer.bundle.policy
        return None if policy is None else policy.title

    def origin(self, role: Role) -> Origin:
        """Return how the traffic log describes the bundle's decisions."""
        return Origin("serve", role, self.digest, self.policy, tuple(self.scorer.bundle.metadata.labels))


def load(
    path: Path, variant: str, threads: int | None, public_key: StrPath | None = None, policy_text: StrPath | None = None
) -> LoadedBundle:
    """Load a bundle, check its hashes, and check that the runtime reproduces its golden outputs.

    Args:
        path: the folder, or a link to it.
        variant: precision of the encoders.
        threads: threads within an operator.
        public_key: PEM file; the bundle must be signed by the holder of this key.
        policy_text: file of policy texts that a guard reads in place of the bundle's.

    Raises:
        UserError: if it is not a bundle, was altered, is not signed by the key, does not reproduce its golden outputs, or cannot
            be given the policy texts.
    """
    resolved = path.resolve()  # a link that is switched meanwhile must not mix two bundles
    if not is_bundle(resolved):
        raise UserError(f"{path} is not a bundle; make one with `vigil export`")
    scorer = Scorer(resolved, threads, variant=variant, public_key=public_key)
    check_golden_outputs(scorer.bundle, [runtime_backend(scorer)])
    if policy_text is not None:
        texts = read_policy_text(policy_text, scorer.bundle)
        scorer = Scorer(scorer.bundle, variant=variant, sessions=scorer.sessions, policy_text=texts)
        for kind, labels in (("not evaluated", scorer.model.not_evaluated), ("uncalibrated", scorer.model.uncalibrated)):
            if labels:
                _log.warning("policy text %s: %s with this bundle: %s", policy_text, kind, ", ".join(labels))
    return LoadedBundle(resolved, scorer)


class ModelManager:
    """Holds the bundle that decides, and replaces it.

    Args:
        path: the bundle's folder, which :meth:`reload` reads by default.
        loading: loads a bundle; runs in a thread.
        metrics: counts reloads.

    Attributes:
        busy: whether a bundle is being loaded.
        refused: why the last bundle was refused; ``None`` if it was loaded.
    """

    def __init__(self, path: StrPath, loading: Callable[[Path], LoadedBundle], metrics: ServerMetrics) -> None:
        self.path, self._loading, self._metrics = Path(path), loading, metrics
        self._loaded: LoadedBundle | None = None
        self.busy = False
        self.refused: str | None = None

    @property
    def ready(self) -> bool:
        """Whether a bundle is loaded."""
        return self._loaded is not None

    def current(self) -> LoadedBundle:
        """Return the bundle that decides now.

        Raises:
            RequestError: 503, while the first bundle is loading.
        """
        if self._loaded is None:
            raise unavailable("the bundle is loading; try again later", "loading")
        return self._loaded

    async def reload(self, path: Path | None = None) -> LoadedBundle:
        """Load a bundle and replace the current one, which finishes its running batches.

        Args:
            path: the bundle's folder (default: the path of the current one).

        Raises:
            RequestError: 409, while another bundle is being loaded.
            UserError: if the bundle is refused; the current one stays.
        """
        if self.busy:
            raise RequestError(409, "a bundle is being loaded already; try again later", "busy")
        self.busy, path = True, path or self.path
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(None, functools.partial(self._loading, path))
        except Exception as error:
            lines = error.lines if isinstance(error, UserError) else [str(error)] if isinstance(error, Failure) else []
            self.refused = "; ".join(lines) or f"{path}: cannot be loaded: {type(error).__name__}"
            self._metrics.reload("refused")
            _log.error("bundle refused: %s", self.refused)
            raise UserError(self.refused) from None
        finally:
            self.busy = False
        self.path, self._loaded, self.refused = path, loaded, None
        self._metrics.set_bundle(loaded.name, loaded.digest, loaded.policy)
        self._metrics.reload("loaded")
        _log.info("loaded bundle %s, digest %s", loaded.name, loaded.digest)
        return loaded
