"""Who is let in: nobody before the bundle is loaded or once the server stops; and whoever was let in is waited for."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vigil_serving.protocol.errors import unavailable


class Gate:
    """Counts the requests that were accepted and not answered yet.

    Args:
        ready: whether there is a bundle that decides.
    """

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self.draining = False
        self.in_flight = self.accepted = 0

    @property
    def open(self) -> bool:
        """Whether requests are let in."""
        return self._ready() and not self.draining

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Let one request in; it counts as open until the block ends.

        Raises:
            RequestError: 503.
        """
        if self.draining:
            raise unavailable("the server is stopping; send this to another one", "draining")
        if not self._ready():
            raise unavailable("the bundle is loading; try again later", "loading")
        self.in_flight += 1
        self.accepted += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more and wait for those inside.

        Args:
            seconds: the longest that is waited.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.in_flight and loop.time() < until:
            await asyncio.sleep(0.02)
