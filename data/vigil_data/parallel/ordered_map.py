"""A function of many tasks, such as blocks of rows: results come in the order of the tasks, and few are held at a time.

The same function runs in this process, in processes of this machine, or on Ray. There, tasks are lost with their worker and
run again elsewhere, so a function must not depend on what other tasks did; what it writes must be the same when written twice.

Example:
    >>> list(ordered_map(len, ["a", "bcd"]))
    [1, 3]
"""

import multiprocessing
import pickle
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from vigil_data.errors import Failure, UserError, one_line
from vigil_data.parallel.ray_cluster import RayCluster

TASKS_PER_PROCESS = 2
"""Tasks that are sent for each process: one that runs, and the next."""

MAX_RETRIES = 3
"""Times that Ray runs a task again whose worker died."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def ordered_map(
    function: Callable[[_Task], _Result], tasks: Iterable[_Task], *, cluster: RayCluster | None = None, processes: int = 1
) -> Iterator[_Result]:
    """Yield the result of each task, in order.

    A process gets the function once, so what it holds (a dataset, a model) is opened once in each process.

    Args:
        function: can be pickled, as can its tasks and results.
        tasks: read as a stream, a few ahead.
        cluster: where tasks run (default: on this machine).
        processes: number of processes on this machine; 1 is this process.

    Raises:
        UserError: raised by the function.
        Failure: raised by the function; or if processes that run a task die.
    """
    if cluster is not None:
        yield from _on_ray(function, tasks, cluster)
    elif processes > 1:
        yield from _in_processes(function, tasks, processes)
    else:
        yield from map(function, tasks)


def _in_order(
    submit: Callable[[_Task], Any], result: Callable[[Any], _Result], tasks: Iterable[_Task], most: int, pending: deque[Any]
) -> Iterator[_Result]:
    """Submit tasks, at most ``most`` ahead, and yield their results; ``pending`` holds those that are not yielded yet."""
    ending: Exception | None = None
    tasks = iter(tasks)
    while ending is None:
        try:
            pending.append(submit(next(tasks)))
        except StopIteration as end:
            ending = end
        except (UserError, Failure) as error:  # raised where it would be raised without a look ahead
            ending = error
        while pending and (ending is not None or len(pending) >= most):
            yield result(pending.popleft())
    if not isinstance(ending, StopIteration):
        raise ending


def _in_processes(function: Callable[[_Task], _Result], tasks: Iterable[_Task], processes: int) -> Iterator[_Result]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_keep, initargs=(function,)) as pool:
        try:
            most = TASKS_PER_PROCESS * processes
            for outcome in _in_order(lambda task: pool.submit(_run, task), lambda future: future.result(), tasks, most, deque()):
                yield _unwrapped(outcome)
        except BrokenProcessPool:
            raise Failure("a process of this command died; is there enough memory?") from None
        finally:
            pool.shutdown(cancel_futures=True)


class _Raised(NamedTuple):
    """An error with its lines, which pickled exceptions lose."""

    kind: type[UserError] | type[Failure]
    lines: tuple[str, ...]


_kept: tuple[str, Any] = ("", None)
"""The function of this process, and what identifies it."""


def _keep(function: Any) -> None:
    global _kept  # noqa: PLW0603  (one function for each process)
    _kept = ("", function)


def _run(task: Any) -> Any:
    try:
        return _kept[1](task)
    except UserError as error:
        return _Raised(UserError, tuple(error.lines))
    except Failure as error:
        return _Raised(Failure, (str(error),))


def _unwrapped(outcome: Any) -> Any:
    if isinstance(outcome, _Raised):
        raise outcome.kind(*outcome.lines)
    return outcome


def _on_ray(function: Callable[[_Task], _Result], tasks: Iterable[_Task], cluster: RayCluster) -> Iterator[_Result]:
    ray = cluster.ray
    pickled = ray.put(ray.cloudpickle.dumps(function))
    remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_run_on_ray)
    identity = uuid.uuid4().hex
    pending: deque[Any] = deque()
    most = max(4, TASKS_PER_PROCESS * sum(cluster.cpus()))
    try:
        # The function's reference is in a list: Ray would fetch it for each task otherwise.
        for outcome in _in_order(lambda task: remote.remote(identity, [pickled], task), ray.get, tasks, most, pending):
            yield _unwrapped(outcome)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise Failure(f"a task on Ray failed: {type(cause).__name__}: {_first_line(cause)}") from None
    except ray.exceptions.RayError as error:
        raise Failure(f"Ray failed: {type(error).__name__}: {_first_line(error)}") from None
    finally:
        for reference in pending:
            with suppress(ray.exceptions.RayError):
                ray.cancel(reference)


def _first_line(error: BaseException) -> str:
    return next((one_line(line.strip()) for line in str(error).splitlines() if line.strip()), "")


def _run_on_ray(identity: str, pickled: list[Any], task: Any) -> Any:
    global _kept  # noqa: PLW0603
    if _kept[0] != identity:
        import ray

        _kept = (identity, pickle.loads(ray.get(pickled[0])))  # noqa: S301  (written by this command)
    return _run(task)
