"""Complete decoding of media in worker processes, which may crash, hang or run out of memory: the pool survives and says where.

Example:
    >>> with MediaPool(MediaLimits(), workers=2) as pool:
    ...     for key, verdict in pool.verify([("a", "image", b"GIF89a")]):
    ...         print(key, verdict)
    a Verdict(kind='undecodable', reason="the image's header is damaged or truncated", form='')
"""

import importlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from vigil_data.errors import Failure, MediaError, TooLargeError
from vigil_data.items import Item, Modality
from vigil_data.media_files import MAX_MEDIA_BYTES, megabytes
from vigil_data.settings import MAX_PIXELS

_JOB_MEDIA, _JOB_BYTES = 64, 8_000_000
_START_SECONDS = 120.0
_READY = "ready"
_DECODERS = ("vigil_data.decode.image", "vigil_data.decode.audio")


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Limits of one medium, above which it is refused.

    Attributes:
        bytes: size of the file.
        pixels: pixels of an image or of a frame.
        frames: frames of an animation.
        seconds: duration of a sound.
        decoding_seconds: time that decoding may take, wall clock.
        memory: bytes of memory that decoding may take.
    """

    bytes: int = MAX_MEDIA_BYTES
    pixels: int = MAX_PIXELS
    frames: int = 1_000
    seconds: float = 4 * 3600.0
    decoding_seconds: float = 10.0
    memory: int = 2 * 2**30


class Verdict(NamedTuple):
    """What decoding one medium completely came to.

    Attributes:
        kind: empty if it is good, else ``undecodable``, ``bomb``, ``timeout`` or ``crash``.
        reason: one line; empty if it is good.
        form: its format, such as ``PNG``, if it is good.
    """

    kind: str = ""
    reason: str = ""
    form: str = ""


Decode = Callable[[Modality, bytes, MediaLimits], str]

_Key = TypeVar("_Key")
_Medium = tuple[Any, Modality, bytes]


class MediaPool:
    """Worker processes that decode; a context manager.

    A worker that dies or exceeds the time takes only its current medium with it, and is replaced.

    Args:
        limits: the limits of a medium.
        workers: number of processes (default: one for each core that this process may use).
        decode: decodes a medium completely and returns its format; a worker process imports it.
    """

    def __init__(self, limits: MediaLimits | None = None, workers: int | None = None, decode: Decode | None = None) -> None:
        self._limits = limits or MediaLimits()
        self._decode = decode or decode_medium
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        self._context.set_forkserver_preload(
            ["vigil_data.quality.checks.media_pool", *_DECODERS]
        )  # imported once for all workers
        self._number = workers or len(os.sched_getaffinity(0))
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def verify(self, media: Iterable[tuple[_Key, Modality, bytes]]) -> Iterator[tuple[_Key, Verdict]]:
        """Yield the key and verdict of each medium, in the order in which they are decoded.

        Args:
            media: key, modality and bytes of each; read as a stream, some megabytes ahead.

        Raises:
            Failure: if no worker can be started.
        """
        media = iter(media)
        jobs = self._jobs(media, refused := deque[tuple[Any, Verdict]]())
        job = next(jobs, None)
        while job or any(worker.job for worker in self._workers):
            while refused:
                yield refused.popleft()
            if job and len(self._workers) < self._number and all(worker.job for worker in self._workers):
                self._workers.append(_Worker(self._context, self._limits, self._decode))
            for worker in self._workers:
                if job and not worker.job and worker.send(job):
                    job = next(jobs, None)
            busy = [worker for worker in self._workers if worker.job]
            left = min((worker.deadline for worker in busy), default=0.0) - time.monotonic()
            ready = wait([worker.connection for worker in busy], max(0.0, left))
            for worker in busy:
                yield from worker.received(is_ready=worker.connection in ready)
        yield from refused

    def _jobs(self, media: Iterator[_Medium], refused: deque[tuple[Any, Verdict]]) -> Iterator[list[_Medium]]:
        job: list[_Medium] = []
        size = 0
        for key, modality, data in media:
            if len(data) > self._limits.bytes:
                reason = f"a file of {megabytes(len(data))}, more than {megabytes(self._limits.bytes)}"
                refused.append((key, Verdict("bomb", reason)))
                continue
            job.append((key, modality, data))
            size += len(data)
            if len(job) >= _JOB_MEDIA or size >= _JOB_BYTES:
                yield job
                job, size = [], 0
        if job:
            yield job


class _Worker:
    """One process, its connection, and the media that it has not decoded yet."""

    def __init__(self, context: Any, limits: MediaLimits, decode: Decode) -> None:
        self._context, self._limits, self._decode = context, limits, decode
        self.job: deque[_Medium] = deque()
        self._start()

    def _start(self) -> None:
        self.connection, theirs = self._context.Pipe()
        arguments = (theirs, self._limits, self._decode)
        self._process = self._context.Process(target=_decode_jobs, args=arguments, name="media check", daemon=True)
        self._process.start()
        theirs.close()
        if not self.connection.poll(_START_SECONDS) or self._receive() is None:
            self.kill()
            raise Failure("a process that decodes media could not be started; is there enough memory? Try fewer --workers")

    def send(self, job: Iterable[_Medium]) -> bool:
        """Send the media to decode; return whether that worked, else the worker is replaced."""
        job = list(job)
        self.deadline = time.monotonic() + self._limits.decoding_seconds
        try:
            self.connection.send([(modality, data) for _, modality, data in job])
        except OSError:  # it died while it had nothing to do
            self._restart()
            return False
        self.job.extend(job)
        self.deadline = time.monotonic() + self._limits.decoding_seconds
        return True

    def received(self, *, is_ready: bool) -> Iterator[tuple[Any, Verdict]]:
        """Yield the verdicts that have arrived, and that of a medium that ended the worker or took too long."""
        verdict: Any = None
        while is_ready and self.job and (verdict := self._receive()) is not None:
            yield self.job.popleft()[0], verdict
            self.deadline = time.monotonic() + self._limits.decoding_seconds
            is_ready = self.connection.poll()
        died = is_ready and verdict is None
        if self.job and (died or time.monotonic() >= self.deadline):
            if not died:
                reason = f"takes more than {self._limits.decoding_seconds:g} s to decode"
                self._process.kill()
            self._process.join()
            code = self._process.exitcode or 0
            yield self.job.popleft()[0], Verdict("crash", _why_dead(code)) if died else Verdict("timeout", reason)
            self._restart()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def _restart(self) -> None:
        rest, self.job = list(self.job), deque()
        self.kill()
        self._start()
        while rest and not self.send(rest):
            pass


def _why_dead(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the decoder was killed, as by a system without memory"
    what = f"signal {-code}: {signal.strsignal(-code)}" if code < 0 else f"exit status {code}"
    return f"the decoder crashed ({what})"


def _decode_jobs(connection: Connection, limits: MediaLimits, decode: Decode) -> None:
    """Decode the media of each list that arrives, and send a :class:`Verdict` for each; the main function of a worker."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries print about damaged files; verdicts are sent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _DECODERS:
        importlib.import_module(name)
    _limit_memory(limits.memory)
    connection.send(_READY)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            for modality, data in connection.recv():
                connection.send(_verdict(modality, data, limits, decode))


def _verdict(modality: Modality, data: bytes, limits: MediaLimits, decode: Decode) -> Verdict:
    try:
        return Verdict(form=decode(modality, data, limits))
    except TooLargeError as error:
        return Verdict("bomb", str(error))
    except MediaError as error:
        return Verdict("undecodable", str(error))
    except MemoryError:
        return Verdict("bomb", f"takes more than {megabytes(limits.memory)} of memory to decode")
    except Exception as error:
        return Verdict("crash", f"the decoder failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")


def decode_medium(modality: Modality, data: bytes, limits: MediaLimits) -> str:
    """Decode an image or sound completely, and return its format.

    Raises:
        MediaError: if it cannot be decoded completely, or exceeds a limit.
    """
    from vigil_data.decode.audio import read_audio
    from vigil_data.decode.image import read_image

    if modality == "image":
        return read_image(data, limits.pixels, limits.frames)
    return read_audio(data, limits.seconds)


def media_of(item: Item) -> Iterator[tuple[Modality, int, bytes]]:
    """Yield modality, index and bytes of each image and audio file of an item."""
    modalities: tuple[Modality, ...] = ("image", "audio")
    for modality in modalities:
        for index, data in enumerate(getattr(item, modality)):
            yield modality, index, data


def _limit_memory(budget: int) -> None:
    """Limit the address space to what the process has now and ``budget`` bytes; elsewhere than on Linux there is no limit."""
    with suppress(OSError, ImportError, ValueError):
        import resource

        now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + budget, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
