"""The storage against Optuna's own in memory, and against any interleaving of workers that lag, die and come back."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from vigil_training.sweeps.event_log import EventLog, TrialLostError
from vigil_training.sweeps.storage import SweepFullError, SweepStorage

DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-5, 1e-3, log=True),
    "layers": IntDistribution(1, 6),
    "kind": CategoricalDistribution(["mean", "transformer", None]),
}
STATES = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(verbosity)


def make(folder: Path, limit: int | None = None) -> SweepStorage:
    return SweepStorage(EventLog(folder), "study", ["maximize"], limit)


def facts(trial: FrozenTrial) -> tuple[Any, ...]:
    """Return a trial without its times."""
    values = (trial.number, trial.state, trial.values, trial.params, trial.distributions)
    return (*values, trial.user_attrs, trial.system_attrs, trial.intermediate_values)


def templates() -> st.SearchStrategy[FrozenTrial | None]:
    params: dict[str, Any] = {"lr": 1e-4, "kind": None}
    waiting = create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": params})
    done = create_trial(params=params, distributions={k: DISTRIBUTIONS[k] for k in params}, value=0.5, user_attrs={"a": 1})
    return st.sampled_from([None, None, waiting, done])


def params() -> st.SearchStrategy[tuple[str, float]]:
    return st.tuples(st.just("lr"), st.floats(1e-5, 1e-3)) | st.tuples(
        st.sampled_from(["layers", "kind"]), st.integers(1, 2).map(float)
    )


OPERATIONS = st.lists(
    st.tuples(st.just("create"), templates())
    | st.tuples(st.just("param"), st.integers(0, 3), params())
    | st.tuples(st.just("report"), st.integers(0, 3), st.integers(0, 3), st.floats(allow_nan=False))
    | st.tuples(st.sampled_from(["user", "system"]), st.integers(0, 3), st.sampled_from("ab"), st.integers())
    | st.tuples(st.just("state"), st.integers(0, 3), st.sampled_from(STATES), st.floats(-1, 1)),
    max_size=25,
)


def apply(storage: BaseStorage, operation: tuple[Any, ...]) -> Any:
    """Apply an operation, and return its result or the type of its error."""
    kind, *arguments = operation
    try:
        if kind == "create":
            return storage.create_new_trial(0, arguments[0])
        number, *rest = arguments
        if kind == "param":
            name, value = rest[0]
            return storage.set_trial_param(number, name, value, DISTRIBUTIONS[name])
        if kind == "report":
            return storage.set_trial_intermediate_value(number, *rest)
        if kind == "user":
            return storage.set_trial_user_attr(number, *rest)
        if kind == "system":
            return storage.set_trial_system_attr(number, *rest)
        state, value = rest
        return storage.set_trial_state_values(number, state, [value] if state == TrialState.COMPLETE else None)
    except (KeyError, UpdateFinishedTrialError, RuntimeError) as error:
        return type(error)


@settings(max_examples=40, deadline=None)
@given(OPERATIONS)
def test_storage_of_one_worker_equals_optunas_in_memory(operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = make(Path(folder)), InMemoryStorage()
        theirs.create_new_study([StudyDirection.MAXIMIZE], "study")
        for operation in operations:
            assert apply(ours, operation) == apply(theirs, operation), operation
        expected = [facts(trial) for trial in theirs.get_all_trials(0)]
        assert [facts(trial) for trial in ours.get_all_trials(0)] == expected
        assert [facts(trial) for trial in make(Path(folder)).get_all_trials(0)] == expected
        ours.log.close()


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["create", "report", "end", "end", "release", "take_over", "take_over", "die", "tear"]),
        st.integers(0, 1),
        st.booleans(),
    ),
    max_size=40,
)


LATE_END = [(0, "create", 0, False), (1, "take_over", 0, False), (1, "end", 0, False), (0, "end", 0, True)]


@settings(max_examples=60, deadline=None)
@given(STEPS)
@example(LATE_END)
def test_workers_in_any_interleaving_agree_on_numbers_and_ends(steps: list[tuple[int, str, int, bool]]) -> None:
    """Workers see the files of others late, die with a line cut off, take trials over too early, and go on after that."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workers, watcher = [make(folder, 2) for _ in range(3)], make(folder)
        ends: dict[int, tuple[Any, ...]] = {}
        for serial, (which, step, number, lags) in enumerate(steps):
            worker = workers[which]
            _step(worker, step, number, float(serial), lags=lags)
            if step in ("die", "tear"):
                if step == "tear" and worker.log.path(worker.log.worker).exists():
                    with worker.log.path(worker.log.worker).open("a") as file:
                        file.write('{"trial": 0, "attempt": 0, "state": "COMP')
                worker.log.close()
                workers[which] = make(folder, 2)
            for trial in watcher.get_all_trials(0):
                if trial.number in ends:
                    assert facts(trial)[:3] == ends[trial.number], "an ended trial has changed"
                elif trial.state.is_finished():
                    ends[trial.number] = facts(trial)[:3]
        seen = [facts(trial) for trial in watcher.get_all_trials(0)]
        assert [facts(trial) for trial in make(folder).get_all_trials(0)] == seen
        assert [trial[0] for trial in seen] == list(range(len(seen)))
        assert len(seen) <= 2
        _assert_one_end_each(folder)
        for worker in workers:
            worker.log.close()


def _step(worker: SweepStorage, step: str, number: int, value: float, *, lags: bool) -> None:
    log = worker.log
    if lags:
        log.read = lambda: None  # type: ignore[method-assign]  # the files of the others do not show yet
    try:
        if step == "create":
            worker.create_new_trial(0)
        elif step == "report":
            worker.set_trial_intermediate_value(number, int(value), value)
        elif step == "end":
            worker.set_trial_state_values(number, TrialState.COMPLETE, [value])
        elif step == "release":
            worker.release(number)
        elif step == "take_over":
            log.read()
            if not log.trials[number].ended:
                worker.take_over(number, log.trials[number].last)
    except (KeyError, IndexError, UpdateFinishedTrialError, TrialLostError, SweepFullError):
        pass
    finally:
        log.__dict__.pop("read", None)


def _assert_one_end_each(folder: Path) -> None:
    ends: dict[int, int] = {}
    for file in (folder / "events").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("state") == "COMPLETE":
                ends[event["trial"]] = ends.get(event["trial"], 0) + 1
    assert all(count == 1 for count in ends.values()), ends


def test_write_after_a_takeover_is_refused(tmp_path: Path) -> None:
    slow, other = make(tmp_path), make(tmp_path)
    slow.create_new_trial(0)
    assert other.take_over(0, 0)
    with pytest.raises(TrialLostError, match=f"trial 0 was taken over by {other.log.worker}"):
        slow.set_trial_state_values(0, TrialState.COMPLETE, [1.0])
    other.set_trial_state_values(0, TrialState.COMPLETE, [2.0])
    assert make(tmp_path).get_trial(0).values == [2.0]


def test_write_that_a_full_disk_cuts_off_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from vigil_data.errors import Failure

    storage, write = make(tmp_path), os.write
    storage.create_new_trial(0)
    monkeypatch.setattr("os.write", lambda descriptor, data: write(descriptor, data[:5]))
    with pytest.raises(Failure, match="No space left"):
        storage.set_trial_user_attr(0, "a", 1)
    monkeypatch.setattr("os.write", write)
    storage.set_trial_user_attr(0, "b", 2)
    assert make(tmp_path).get_trial(0).user_attrs == {"b": 2}


def test_claims_of_a_worker_that_died_before_its_first_event_count_as_running(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    assert first.log.claim(0, 0)
    assert second.create_new_trial(0) == 1
    assert [trial.state for trial in second.get_all_trials(0)] == [TrialState.RUNNING, TrialState.RUNNING]


def test_study_is_loaded_by_optuna_and_samples_with_it(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "events", ignore_errors=True)
    study = optuna.load_study(study_name="study", storage=make(tmp_path), sampler=optuna.samplers.TPESampler(seed=0))
    theirs = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    for each in (study, theirs):
        each.enqueue_trial({"x": 0.5})
        each.optimize(lambda trial: -((trial.suggest_float("x", 0, 1) - 0.3) ** 2), n_trials=15)
    assert [trial.params for trial in study.trials] == [trial.params for trial in theirs.trials]
    assert study.best_trial.number == theirs.best_trial.number
