"""Lines of progress where the output is no terminal, and a bar where it is one."""

import io
import time

import pytest

from vigil_data.progress import Progress, _clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wait_for(text: str, stream: io.StringIO) -> str:
    deadline = time.monotonic() + 20
    while text not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    return stream.getvalue()


def test_progress_prints_counts_rate_detail_and_time_left() -> None:
    stream = io.StringIO()
    with Progress("train", unit="steps", stream=stream, interval=0.02) as progress:
        progress("train", 100, 1000)
        time.sleep(0.05)
        progress("train", 200, 1000, "loss 0.5")
        printed = wait_for("left", stream)
    line = next(line for line in printed.splitlines() if "left" in line)
    assert line.startswith("train: 200 of 1,000 steps, ")
    assert " steps/s, loss 0.5, " in line


def test_progress_of_a_resumed_task_counts_its_rate_from_the_first_report() -> None:
    progress = Progress("train", stream=io.StringIO())
    progress("train", 1_000_000, 1_000_001)
    assert "items/s" not in progress._numbers(bar=False)


def test_progress_prints_a_line_where_nothing_is_reported() -> None:
    stream = io.StringIO()
    with Progress("compiling", stream=stream, interval=0.02):
        assert "compiling: 0:00 so far" in wait_for("so far", stream)


def test_progress_prints_its_first_line_before_a_long_interval_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vigil_data.progress.FIRST_SECONDS", 0.02)
    stream = io.StringIO()
    with Progress("compiling", stream=stream, interval=60):
        wait_for("so far", stream)
        time.sleep(0.1)
    assert stream.getvalue().count("so far") == 1


def test_progress_is_silent_before_the_interval_and_if_disabled() -> None:
    stream = io.StringIO()
    with Progress("short", stream=stream) as progress:
        progress("short", 1, 2)
    with Progress("off", stream=stream, interval=0.001, enabled=False):
        time.sleep(0.02)
    assert stream.getvalue() == ""


def test_progress_shows_a_bar_on_a_terminal_that_leaves_nothing_behind() -> None:
    stream = Terminal()
    with Progress("reading", stream=stream, interval=0.001) as progress:
        progress("reading", 3, 4)
    assert "3/4" in stream.getvalue()
    assert not stream.getvalue().rstrip().endswith("4")


def test_clock() -> None:
    assert [_clock(seconds) for seconds in (0, 61, 3_600, 36_061)] == ["0:00", "1:01", "1:00:00", "10:01:01"]


def test_progress_within_another_hides_its_bar_and_shows_it_again() -> None:
    stream = Terminal()
    with Progress("planning", stream=stream) as outer:
        with Progress("counting", stream=stream) as inner:
            inner("counting", 1, 2)
            assert not outer._bar.live.is_started
            assert inner._bar.live.is_started
        assert outer._bar.live.is_started
        with pytest.raises(RuntimeError), Progress("failing", stream=stream):
            raise RuntimeError
        assert outer._bar.live.is_started
    assert not outer._bar.live.is_started
    assert Progress._shown is None
