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
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from vigil_data.errors import UserError
from vigil_data.filesystem import locked, remove
from vigil_training.tracking.parts import PartCopy, Sent, position, read_identity, settled_records, unsent_parts

if TYPE_CHECKING:
    import wandb

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
_LATE = "not everything was sent in time"
_REST = "rest"  # Folder of a copy that is being sent; `wandb sync RUN/wandb` does not look so deep.
_RESUME_STATUS = """
query RunResumeStatus($entity: String, $project: String, $name: String!) {
    model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyTail summaryMetrics } }
}"""


class Upload:
    """Sends what is written to a folder of W&B until it is complete.

    Args:
        folder: W&B's folder of the run; all its parts that have not been sent are sent, the oldest first.
        part: name of the part that this process writes.
        url: address of the server.
        remedy: what sends later what is not sent by the end (default: `vigil track sync`).
    """

    def __init__(self, folder: Path, part: str, url: str, remedy: str | None = None) -> None:
        self._folder, self._url = folder, url
        self._remedy = remedy or f"send it with `vigil track sync {folder.parent}`"
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
            self._warn(_LATE)

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
                "%s: %s; the run is tracked offline in %s; if it is not sent by the end, %s",
                *(self._url, problem, self._folder, self._remedy),
            )


def start_upload(tracked: "wandb.Run", remedy: str | None = None) -> Upload:
    """Start to send a tracked run that this process writes, and its earlier parts."""
    part = Path(tracked.settings.sync_dir)
    return Upload(part.parent, part.name, tracked.settings.base_url, remedy)


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
    os.environ["WANDB_BASE_URL"] = url
    parent = _Parent()
    while problem := probe(url) or _send_all_locked(folder, part, parent):
        _report(problem=problem)
        if parent.ended.wait(RETRY_SECONDS):
            return 1
    return 0


def probe(url: str) -> str | None:
    """Return why the server cannot be reached or refuses the API key; ``None`` if it accepts it."""
    has_token = "WANDB_IDENTITY_TOKEN_FILE" in os.environ
    if not (os.environ.get("WANDB_API_KEY") or has_token or requests.utils.get_netrc_auth(url)):
        return f"no API key for {urlsplit(url).hostname}; run `wandb login`"
    try:
        status = _ask(url, "query Viewer { viewer { id } }").status_code
    except requests.Timeout:
        return f"no answer within {PROBE_TIMEOUT_SECONDS:g} s"
    except requests.RequestException as error:
        return f"cannot be reached ({_cause(error)})"
    if status in (401, 403):
        # W&B exchanges an identity token for access only when it sends.
        return None if has_token else f"the server refuses the API key (HTTP {status}); run `wandb login --relogin`"
    return f"the server answers HTTP {status}" if status >= 400 else None


def _ask(url: str, query: str, **variables: str | None) -> requests.Response:
    """Send a GraphQL query."""
    key = os.environ.get("WANDB_API_KEY")
    # Without a key of its own, requests takes the one that `wandb login` left in .netrc.
    auth = ("api", key) if key else None
    content: Any = {"query": query, "variables": variables}
    return requests.post(f"{url}/graphql", json=content, auth=auth, timeout=PROBE_TIMEOUT_SECONDS)


def sent_metrics(url: str, entity: str | None, project: str | None, run_id: str) -> Sent:
    """Return what the server has of a run's metrics.

    Raises:
        requests.RequestException: if the server cannot be reached or answers with an error.
    """
    answer = _ask(url, _RESUME_STATUS, entity=entity, project=project, name=run_id)
    answer.raise_for_status()
    content: Any = answer.json()
    for name in ("data", "model", "bucket"):
        content = content.get(name) or {}
    rows = [json.loads(row) for row in json.loads(content.get("historyTail") or "[]")]
    rows = [row for row in rows if position(row) is not None] or [json.loads(content.get("summaryMetrics") or "{}")]
    step = max(int(position(row) or 0) for row in rows)
    return Sent(step, frozenset(name for row in rows if position(row) == step for name in row))


def _cause(error: BaseException) -> str:
    """Return the system's words for an error that requests and urllib3 have wrapped several times."""
    words = str(error)
    while error.__context__ is not None:
        error = error.__context__
        words = getattr(error, "strerror", None) or words
    return words


def send_part(file: Path, entity: str, project: str) -> str | None:
    """Send a complete part, however long it takes, and return why it could not be sent."""
    return _send(file, False, _Endless(), (entity, project))


def _send_all_locked(folder: Path, part: str, parent: _Parent) -> str | None:
    try:
        with locked(folder / LOCK, "{owner} is sending the run too"):
            return _send_all(folder, part, parent)
    except UserError as error:
        return str(error)


def _send_all(folder: Path, part: str, parent: _Parent) -> str | None:
    """Send the unsent parts in their order, and return the first problem."""
    for file in unsent_parts(folder):
        live = file.parent.name == part
        if problem := _send(file, live, parent):
            return problem
    return None


def _send(file: Path, live: bool, parent: _Parent, project: tuple[str, str] | None = None) -> str | None:
    """Send what the server lacks of a part with `wandb sync`; of a live one until its writer finishes it.

    Args:
        file: the part.
        live: whether it is being written.
        parent: the process that decides how long to try.
        project: entity and project (default: those of the part).
    """
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not live and not settled_records(file):
        return None  # The start was killed before W&B's library wrote anything.
    while (identity := read_identity(file)) is None:
        if not live:
            return f"{file}: is empty"
        if time.monotonic() >= parent.deadline:
            return _LATE
        time.sleep(_POLL_SECONDS)  # W&B's service writes every few seconds, and its last when the training has ended the part.
    try:
        sent = sent_metrics(url, *(project or identity[:2]), identity[2])
    except (requests.RequestException, ValueError) as error:
        return f"does not tell what it has of the run ({_cause(error)})"
    copy = PartCopy(file, file.parent.parent / _REST / file.parent.name, sent) if sent.step else None
    try:
        options = ["--entity", project[0], "--project", project[1]] if project else []
        return _sync(file, copy, live, parent, options)
    finally:
        if copy is not None:
            remove(copy.path.parent.parent)


def _sync(file: Path, copy: PartCopy | None, live: bool, parent: _Parent, options: Sequence[str] = ()) -> str | None:
    output = file.parent.parent / "upload.log"
    source = file if copy is None else copy.path
    command = [sys.executable, "-m", "wandb", *(["beta", "sync", "--live"] if live else ["sync", *options]), str(source)]
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
        if live and copy is not None:
            copy.advance()
        if live and not linked and (link := re.search(r"View run .* at (\S+)", output.read_text(errors="replace"))):
            linked = True
            _report(link=link.group(1))
    if process.poll() is None:
        _report(problem=_LATE)
        os.killpg(0, signal.SIGKILL)  # this process, `wandb sync` and W&B's own service
    if source.with_name(f"{source.name}.synced").exists():
        file.with_name(f"{file.name}.synced").touch()
        return None
    errors = re.findall(r"(?:ERROR|Error:) (.+)", output.read_text(errors="replace"))
    return f"`wandb sync` failed ({errors[-1] if errors else f'status {process.returncode}'}; see {output})"


def _report(**event: str) -> None:
    with contextlib.suppress(OSError):  # The training process has ended.
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
