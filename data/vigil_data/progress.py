"""Progress of long work: a bar on a terminal; elsewhere a line after 5 seconds and then one every 15 seconds.

Example:
    >>> with Progress("predicting") as progress:
    ...     for done, batch in enumerate(batches, start=1):
    ...         progress("predicting", done, len(batches))
"""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Self, TextIO

INTERVAL_SECONDS = 15.0
"""Time between two lines where the output is not a terminal."""

FIRST_SECONDS = 5.0
"""Time before the first line, if the interval is longer."""

ProgressCallback = Callable[[str, int, int | None], None]
"""Called with the task, how much of it is done, and how much there is (None if unknown)."""


class Progress:
    """Reports the progress of one task after the other; a context manager, and itself a :data:`ProgressCallback`.

    Args:
        task: what is done first.
        unit: what is counted, in the plural.
        stream: where to report (default: standard error).
        interval: seconds between two lines where the stream is not a terminal.
        enabled: report nothing if false.
    """

    _done: int | None
    _shown: ClassVar["Progress | None"] = None  # A terminal has room for one bar: an inner task's hides the outer one's.

    def __init__(
        self,
        task: str,
        *,
        unit: str = "items",
        stream: TextIO | None = None,
        interval: float = INTERVAL_SECONDS,
        enabled: bool = True,
    ) -> None:
        self._stream = stream or sys.stderr
        self._unit = unit
        self._interval = interval
        self._enabled = enabled
        self._bar: Any = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._start_task(task)

    def __enter__(self) -> Self:
        if self._enabled and self._stream.isatty():
            self._outer, Progress._shown = Progress._shown, self
            if self._outer is not None:
                self._outer._bar.stop()
            self._bar = _open_bar(self._stream)
            self._bar_task = self._bar.add_task(self._task, total=None, detail="")
        elif self._enabled:
            self._thread = threading.Thread(target=self._print_lines, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
            Progress._shown = self._outer
            if self._outer is not None:
                self._outer._bar.start()
        elif self._enabled:
            self._thread.join()

    def __call__(self, task: str, done: int = 0, total: int | None = None, detail: str = "", unit: str | None = None) -> None:
        """Report how far the work is.

        Args:
            task: what is being done; another one than before starts the clock again.
            done: how much of it is done.
            total: how much there is, if known.
            detail: shown behind the numbers, such as a loss.
            unit: what is counted, in the plural (default: as given to the class).
        """
        with self._lock:
            if task != self._task:
                self._start_task(task)
            self._task_unit = unit or self._unit
            if self._done is None:  # A resumed task starts above 0; its rate counts from there.
                self._first = done
            self._done, self._total, self._detail = done, total, detail
        if self._bar is not None:
            self._bar.update(self._bar_task, description=task, completed=done, total=total, detail=self._numbers(bar=True))

    def _start_task(self, task: str) -> None:
        self._task, self._task_unit, self._start = task, self._unit, time.monotonic()
        self._first, self._total, self._detail = 0, None, ""
        self._done = None

    def _print_lines(self) -> None:
        pause = min(FIRST_SECONDS, self._interval)
        while not self._ended.wait(pause):
            pause = self._interval
            with self._lock:
                line = ", ".join(part for part in (self._counts(), self._numbers(bar=False)) if part)
            print(f"{self._task}: {line}", file=self._stream, flush=True)

    def _counts(self) -> str:
        if not self._done and self._total is None:
            return ""
        if self._total is None:
            return f"{self._done:,} {self._task_unit}"
        return f"{self._done or 0:,} of {self._total:,} {self._task_unit}"

    def _numbers(self, *, bar: bool) -> str:
        """Rate, detail, and the time left or spent."""
        seconds = time.monotonic() - self._start
        rate = ((self._done or 0) - self._first) / seconds if seconds > 0 else 0.0
        parts = [f"{rate:,.0f} {self._task_unit}/s" if rate >= 100 else f"{rate:.3g} {self._task_unit}/s"] if rate > 0 else []
        parts += [self._detail] if self._detail else []
        if self._total is not None and rate > 0:
            parts.append(f"{_clock((self._total - (self._done or 0)) / rate)} left")
        elif not bar:
            parts.append(f"{_clock(seconds)} so far")
        return ", ".join(parts)


def _open_bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    bar = Bar(*columns, console=Console(file=stream), transient=True)
    bar.start()
    return bar


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
