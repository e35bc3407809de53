"""`vigil train` under observation, in processes that are forked from one that has imported everything.

Importing what a training needs takes about eight seconds of CPU time in each rank, and a tiny training two.

Example:
    >>> status, errors = train(recipe, run, statuses=(85,), kill={"step": 5, "signal": "SIGTERM"})
"""

import atexit
import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

IMPORTED = (
    "vigil.cli",
    "vigil_training.trainer.fit",
    "vigil_training.recipe.resolve",
    "vigil_data.card.collect",
    "vigil_data.card.markdown",
    "vigil_evaluation.calibration.fit",
    "vigil_modeling.encoders.timm_image",
    "deepspeed",
    "omegaconf",
    "timm",
    "torch._inductor.compile_fx",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "transformers.models.bert.modeling_bert",
    "wandb.sdk.wandb_run",
)
"""What a training imports early or late."""


class DrivenTraining:
    """A start of `vigil train`.

    Attributes:
        pid: its process, or that of what starts its ranks.
        returncode: exit status, negative for a signal; ``None`` while it runs.
    """

    def __init__(self, connection: Connection, stderr: int) -> None:
        self._connection, self._stderr = connection, stderr
        self.pid: int = connection.recv()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or ``None`` while it runs."""
        if self.returncode is None and self._connection.poll():
            self.returncode = self._connection.recv()
        return self.returncode

    def read_errors(self, timeout: float) -> str:
        """Wait until all of its processes have closed their standard error, and return what they wrote.

        Raises:
            TimeoutError: if that takes longer than ``timeout`` seconds; the training is killed.
        """
        deadline, parts = time.monotonic() + timeout, []
        while select.select([self._stderr], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not (part := os.read(self._stderr, 1 << 16)):
                self.returncode = self._connection.recv() if self.returncode is None else self.returncode
                self._connection.close()
                os.close(self._stderr)
                return b"".join(parts).decode()
            parts.append(part)
        os.kill(self.pid, signal.SIGKILL)
        raise TimeoutError(f"the training took more than {timeout} s: {b''.join(parts).decode()[-3000:]}")


def start_training(recipe: Path, run: Path, **options: Any) -> DrivenTraining:
    """Start `vigil train RECIPE --run RUN` in this process's environment, under the observation of ``drive.py``.

    The options are those of ``drive.py``, and ``warnings``: what warnings do, such as ``error``.
    """
    address, server = _server()
    connection = Client(address, "AF_UNIX")
    reader, writer = os.pipe()
    connection.send((["vigil", "train", str(recipe), "--run", str(run)], dict(os.environ), options))
    send_handle(connection, writer, server)
    os.close(writer)
    return DrivenTraining(connection, reader)


def train(
    recipe: Path, run: Path, *, statuses: tuple[int, ...] = (0,), timeout: float = 300.0, **options: Any
) -> tuple[int, str]:
    """Start a training and wait for it; return its exit status, which must be one of ``statuses``, and its standard error."""
    training = start_training(recipe, run, **options)
    errors = training.read_errors(timeout)
    assert training.returncode in statuses, errors
    return training.returncode, errors


@functools.cache
def _server() -> tuple[str, int]:
    """Start the process that has imported everything, which ends with this one; return its address and its id."""
    folder = tempfile.TemporaryDirectory(prefix="vigil-driven-")
    address = f"{folder.name}/socket"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    server = subprocess.Popen([sys.executable, __file__, address, str(os.getpid())], env=environment, stdout=subprocess.PIPE)

    def end() -> None:
        server.kill()
        server.communicate()
        folder.cleanup()

    atexit.register(end)
    assert server.stdout is not None
    assert b"listening\n" in iter(server.stdout.readline, b""), "it has ended"  # libraries print too
    return address, server.pid


def _serve(address: str) -> None:
    """Fork a process for each request, which starts the training and reports its exit status."""
    with Listener(address, "AF_UNIX") as listener:
        print("listening", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            with listener.accept() as connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _report(connection)
                    os._exit(0)


def _report(connection: Connection) -> None:
    arguments, environment, options = connection.recv()
    stderr = recv_handle(connection)
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _run(arguments, environment, options)
    os.close(stderr)
    connection.send(pid)
    connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _run(arguments: list[str], environment: dict[str, str], options: dict[str, Any]) -> NoReturn:
    """Train as `vigil` does in a new process."""
    from drive import watch

    from vigil.cli import main
    from vigil_training.distributed import launch

    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    launch.subprocess = SimpleNamespace(Popen=functools.partial(ForkedRank, options))
    several = json.loads(Path(arguments[2]).read_text())["strategy"].get("devices", 1) > 1
    if not several or "RANK" in environment:  # nobody watches what starts the ranks
        if action := options.get("warnings"):
            warnings.simplefilter(action)
        watch(options)
    _end(main)


class ForkedRank:
    """What ``launch`` needs of :class:`subprocess.Popen`, forked."""

    def __init__(
        self,
        options: dict[str, Any],
        command: list[str],
        *,
        env: dict[str, str],
        process_group: int,
        preexec_fn: Callable[[], None],
    ) -> None:
        from vigil_training.distributed.launch import FORWARDED

        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, process_group)
            preexec_fn()
            for number in FORWARDED:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            _run(command[1:], env, options)

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _end(function: Callable[[], object]) -> NoReturn:
    """Run a function and end this forked process as Python ends one."""
    status = 1
    try:
        function()
        status = 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    from vigil_training.distributed.launch import end_with

    end_with(int(sys.argv[2]))
    for name in IMPORTED:
        importlib.import_module(name)
    _serve(sys.argv[1])
