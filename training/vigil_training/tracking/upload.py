"""Upload of a tracked run to Weights & Biases, by a process of its own.

Training writes the tracked run to disk only. The process that this module starts sends it while it is written, so a server that
refuses, hangs, fails or disappears can neither stop nor slow the training. What could not be sent stays in the run folder.
"""

import contextlib
import json
import logging
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import requests

from vigil_data.errors import UserError
from vigil_data.filesystem import locked, remove

log = logging.getLogger("vigil.track")

PROBE_TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 60.0
FINISHED_SECONDS = 30.0
"""Time to send the rest of a run that has finished."""

INTERRUPTED_SECONDS = 3.0
"""Time to send the rest of a run that was stopped, which its next start continues to send; a preempted job has seconds."""

LOCK = ".sync.lock"
"""Held in W&B's folder of a run by the process that sends it."""

_POLL_SECONDS = 0.2
_SETTLE_SECONDS = 5.0  # W&B's own service may write a part to its end after the process that tracked has ended.
_BLOCK_BYTES = 32768
_HEADER_BYTES = 7  # of a file, and of a record


class Upload:
    """Sends what is written to a folder of W&B until it is complete.

    Args:
        folder: W&B's folder of the run; all its parts that have not been sent are sent, the oldest first.
        part: name of the part that this process writes.
        url: address of the server.
    """

    def __init__(self, folder: Path, part: str, url: str) -> None:
        self._folder, self._url = folder, url
        self._warned = False
        self._complete = True
        # Its own session: an interrupt from the terminal is for the training, which then ends the upload.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", __name__, str(folder), part, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_events, name="upload", daemon=True)
        self._reader.start()

    def end(self, complete: bool) -> None:
        """Announce that the part is written; does not wait.

        Args:
            complete: whether the run has finished; the rest of another is sent by its next start.
        """
        self._complete = complete
        try:
            assert self._process.stdin is not None
            with self._process.stdin as stdin:
                stdin.write(f"{FINISHED_SECONDS if complete else INTERRUPTED_SECONDS}\n")
        except OSError:  # It has ended.
            pass

    def join(self) -> None:
        """Wait until all is sent, for a bounded time, and warn if it is not."""
        try:
            self._process.wait(FINISHED_SECONDS + PROBE_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # with `wandb sync`, which would send on by itself
        self._reader.join(_POLL_SECONDS)
        sent = self._process.wait() == 0
        if sent and self._warned:
            log.info("%s: the tracked run has been sent after all", self._url)
        elif not sent and self._complete:
            self._warn("not everything was sent in time")

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                match json.loads(line):
                    case {"problem": problem}:
                        self._warn(problem)
                    case {"link": link}:
                        log.info("tracked at %s", link)

    def _warn(self, problem: str) -> None:
        """Warn once: a later problem has the same remedy."""
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: %s; the run is tracked offline in %s; if it is not sent by the end, send it with `wandb sync %s`",
                *(self._url, problem, self._folder, self._folder),
            )


def repair_parts(folder: Path) -> None:
    """Remove a record that a kill cut off from the parts of a run that were not sent, and parts without any record.

    `wandb sync` stops at such a part and sends none of the later ones. A part that has just been written is left alone.
    """
    for part in _unsent(folder):
        if time.time() - part.stat().st_mtime < _SETTLE_SECONDS:
            continue
        with part.open("r+b") as file:
            length = _whole_bytes(file)
            if length > _HEADER_BYTES:
                file.truncate(length)
        if length <= _HEADER_BYTES:
            remove(part.parent)


def _whole_bytes(file: BinaryIO) -> int:
    """Return the length of the whole records of a `.wandb` file: LevelDB's log format after a header of its own."""
    size, at, whole = os.fstat(file.fileno()).st_size, _HEADER_BYTES, _HEADER_BYTES
    while True:
        left = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left < _HEADER_BYTES:  # Padding: no record header fits into the block.
            at += left
        if at + _HEADER_BYTES > size:
            return whole
        file.seek(at + 4)  # after the checksum
        length, kind = struct.unpack("<HB", file.read(3))
        at += _HEADER_BYTES + length
        if at > size or kind not in (1, 2, 3, 4):
            return whole
        if kind in (1, 4):  # A full record, or the last piece of one.
            whole = at


def _unsent(folder: Path) -> list[Path]:
    """Return the `.wandb` files that have not been sent completely, the oldest first."""
    files = sorted(folder.glob("offline-run-*/run-*.wandb"))
    return [file for file in files if not file.with_name(f"{file.name}.synced").exists()]


class _Parent:
    """The training process, which writes how many seconds are left when it has finished; that it ends is seen in any case."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.deadline = math.inf
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        self.deadline = time.monotonic() + float(sys.stdin.readline() or 0)
        self.ended.set()


class _Endless(_Parent):
    """Stands for a process that waits for as long as sending takes."""

    def __init__(self) -> None:
        self.ended, self.deadline = threading.Event(), math.inf


def main(folder: Path, part: str, url: str) -> int:
    """Send the unsent parts of a run, the last one while it is written; try again until the training has ended."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # Slurm signals every process of a job.
        signal.signal(number, signal.SIG_IGN)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # What it starts is ended with it, by its group.
    parent = _Parent()
    while problem := probe(url) or _send_all_locked(folder, part, parent):
        _report(problem=problem)
        if parent.ended.wait(RETRY_SECONDS):
            return 1
    return 0


def probe(url: str) -> str | None:
    """Return why the server cannot be reached or refuses the API key; ``None`` if it accepts it."""
    key, has_token = os.environ.get("WANDB_API_KEY"), "WANDB_IDENTITY_TOKEN_FILE" in os.environ
    if not (key or has_token or requests.utils.get_netrc_auth(url)):
        return f"no API key for {urlsplit(url).hostname}; run `wandb login`"
    query = {"query": "query Viewer { viewer { id } }"}
    try:
        # Without a key of its own, requests takes the one that `wandb login` left in .netrc.
        auth = ("api", key) if key else None
        status = requests.post(f"{url}/graphql", json=query, auth=auth, timeout=PROBE_TIMEOUT_SECONDS).status_code
    except requests.Timeout:
        return f"no answer within {PROBE_TIMEOUT_SECONDS:g} s"
    except requests.RequestException as error:
        return f"cannot be reached ({_cause(error)})"
    if status in (401, 403):
        # W&B exchanges an identity token for access only when it sends.
        return None if has_token else f"the server refuses the API key (HTTP {status}); run `wandb login --relogin`"
    return f"the server answers HTTP {status}" if status >= 400 else None


def _cause(error: BaseException) -> str:
    """Return the system's words for an error that requests and urllib3 have wrapped several times."""
    words = str(error)
    while error.__context__ is not None:
        error = error.__context__
        words = getattr(error, "strerror", None) or words
    return words


def unsent_parts(folder: Path) -> list[Path]:
    """Return the `.wandb` files of a run that have not been sent completely, the oldest first."""
    return _unsent(folder)


def send_part(file: Path, entity: str, project: str) -> str | None:
    """Send a complete part, however long it takes, and return why it could not be sent."""
    return _send(file, False, file.parent.parent / "upload.log", _Endless(), "--entity", entity, "--project", project)


def _send_all_locked(folder: Path, part: str, parent: _Parent) -> str | None:
    try:
        with locked(folder / LOCK, "{owner} is sending the run too"):
            return _send_all(folder, part, parent)
    except UserError as error:
        return str(error)


def _send_all(folder: Path, part: str, parent: _Parent) -> str | None:
    """Send the unsent parts in their order, and return the first problem."""
    for file in _unsent(folder):
        live = file.parent.name == part
        if problem := _send(file, live, folder / "upload.log", parent):
            return problem
    return None


def _send(file: Path, live: bool, output: Path, parent: _Parent, *options: str) -> str | None:
    """Send a part with `wandb sync` and its options; a live one until its writer finishes it."""
    command = [sys.executable, "-m", "wandb", *(["beta", "sync", "--live"] if live else ["sync", *options]), str(file.parent)]
    # Without WANDB_SERVICE: W&B's service of the training would go on sending after this process is killed.
    environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SERVICE")}
    environment["WANDB_DIR"] = str(file.parent.parent.parent)  # W&B's logs belong into the run folder.
    linked = False
    with output.open("w") as out:
        process = subprocess.Popen(  # noqa: S603
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    while process.poll() is None and time.monotonic() < parent.deadline:
        time.sleep(_POLL_SECONDS)
        if live and not linked and (link := re.search(r"View run .* at (\S+)", output.read_text(errors="replace"))):
            linked = True
            _report(link=link.group(1))
    if process.poll() is None:
        _report(problem="not everything was sent in time")
        os.killpg(0, signal.SIGKILL)  # this process, `wandb sync` and W&B's own service
    if file.with_name(f"{file.name}.synced").exists():
        return None
    errors = re.findall(r"(?:ERROR|Error:) (.+)", output.read_text(errors="replace"))
    return f"`wandb sync` failed ({errors[-1] if errors else f'status {process.returncode}'}; see {output})"


def _report(**event: str) -> None:
    with contextlib.suppress(OSError):  # The training process has ended.
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
