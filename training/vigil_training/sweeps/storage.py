"""Optuna's storage over the event log of a sweep folder: no server, no locks across machines.

Example:
    >>> storage = SweepStorage(EventLog(Path("sweeps/comments")), "comments", ["maximize"])
    >>> study = optuna.load_study(study_name="comments", storage=storage)
"""

import copy
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vigil_training.sweeps.event_log import EventLog, TrialRecord
from vigil_training.sweeps.liveness import newest_attempt
from vigil_training.sweeps.optuna_internals import frozen_study

STUDY_ID = 0


class SweepFullError(Exception):
    """All trials of the sweep have been started."""


class SweepStorage(BaseStorage):
    """The one study of a sweep folder; ids of trials are their numbers.

    A trial is changed by the worker that has claimed its newest attempt. A trial that Optuna has enqueued is claimed by the
    worker that starts it, and one whose worker was lost by :meth:`take_over`.

    Args:
        log: the events.
        name: name of the study.
        directions: ``maximize`` or ``minimize`` of each metric.
        limit: number of trials that may be created; ``None`` for any number.
    """

    def __init__(self, log: EventLog, name: str, directions: Sequence[str], limit: int | None = None) -> None:
        self.log = log
        self._name = name
        self._directions = [StudyDirection[direction.upper()] for direction in directions]
        self._limit = limit
        self._trials: list[FrozenTrial] = []
        self._distributions: dict[str, BaseDistribution] = {}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Raise the error of a study that exists: a sweep folder has one from the start."""
        del directions, study_name
        raise optuna.exceptions.DuplicatedStudyError(f"a sweep folder has one study, {self._name}")

    def delete_study(self, study_id: int) -> None:
        """Refuse: a sweep is deleted with its folder."""
        self._check_study(study_id)
        raise RuntimeError(f"{self.log.folder}: delete the folder instead")

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of the study."""
        self._check_study(study_id)
        self.log.write_study({"user": {key: value}})

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set an attribute of the study, for Optuna."""
        self._check_study(study_id)
        self.log.write_study({"system": {key: value}})

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the study's id."""
        if study_name != self._name:
            raise KeyError(f"there is no study {study_name}")
        return STUDY_ID

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the study's name."""
        self._check_study(study_id)
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the direction of each metric."""
        self._check_study(study_id)
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the study's attributes."""
        self._check_study(study_id)
        self.log.read()
        return copy.deepcopy(self.log.user)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the study's attributes for Optuna."""
        self._check_study(study_id)
        self.log.read()
        return copy.deepcopy(self.log.system)

    def get_all_studies(self) -> list[Any]:
        """Return the study."""
        user, system = self.get_study_user_attrs(STUDY_ID), self.get_study_system_attrs(STUDY_ID)
        return [frozen_study(self._name, self._directions, user, system, STUDY_ID)]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Claim the next number and create its trial.

        Raises:
            SweepFullError: if all trials have been created.
        """
        self._check_study(study_id)
        with self.log.lock:
            self.log.read()
            self.log.read_claims()
            number = len(self.log.trials)
            while True:
                if self._limit is not None and number >= self._limit:
                    raise SweepFullError
                if self.log.claim(number, 0):
                    break
                number += 1
            self.log.write(number, 0, {"state": "RUNNING"} if template_trial is None else _as_change(template_trial))
        return number

    def take_over(self, number: int, attempt: int) -> bool:
        """Claim a trial after an attempt whose worker was lost or released it, and return whether this worker has it now."""
        with self.log.lock:
            if not self.log.claim(number, attempt + 1):
                return False
            self.log.read()
            if self.log.trials[number].ended:  # Its worker was alive after all, and ended it in this moment.
                return False
            self.log.write(number, attempt + 1, {"state": "RUNNING"})
        return True

    def release(self, number: int) -> None:
        """Give a running trial back, so that any worker continues it."""
        self._write(number, {"state": "RELEASED"})

    def start_trial(self, number: int, params: Mapping[str, tuple[BaseDistribution, Any]], attributes: dict[str, Any]) -> None:
        """Set all parameters of a trial, as Optuna keeps them, and attributes, in one event."""
        stored = {
            name: (distribution.to_internal_repr(value), distribution_to_json(distribution))
            for name, (distribution, value) in params.items()
        }
        self._write(number, {"params": stored, "user": attributes})

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter."""
        with self.log.lock:
            self._check_updatable(trial_id)
            if param_name in self._distributions:
                check_distribution_compatibility(self._distributions[param_name], distribution)
            self._write(trial_id, {"params": {param_name: (param_value_internal, distribution_to_json(distribution))}})

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state, and the values of a trial that ends; false if it is running already, or another worker started it."""
        with self.log.lock:
            trial = self._check_updatable(trial_id)
            if state == TrialState.RUNNING:
                return trial.state == TrialState.WAITING and self.take_over(trial_id, self._record(trial_id).last)
            self._write(trial_id, {"state": state.name, "values": None if values is None else list(values)})
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set the value at a step."""
        self._check_updatable(trial_id)
        self._write(trial_id, {"intermediate": {step: intermediate_value}})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute."""
        self.set_trial_user_attrs(trial_id, {key: value})

    def set_trial_user_attrs(self, trial_id: int, attributes: dict[str, Any]) -> None:
        """Set several attributes in one event."""
        self._check_updatable(trial_id)
        self._write(trial_id, {"user": attributes})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute for Optuna."""
        self._check_updatable(trial_id)
        self._write(trial_id, {"system": {key: value}})

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial."""
        with self.log.lock:
            self._refresh()
            if not 0 <= trial_id < len(self._trials):
                raise KeyError(f"there is no trial {trial_id}")
            return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials by number."""
        self._check_study(study_id)
        with self.log.lock:
            self._refresh()
            trials = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _refresh(self) -> None:
        """Read new events, and make the changed trials again; those that were returned do not change."""
        self.log.read()
        for number in sorted(self.log.changed):
            trial = _to_frozen(self.log.trials[number])
            self._distributions |= trial.distributions
            if number < len(self._trials):
                self._trials[number] = trial
            else:
                self._trials.append(trial)
        self.log.changed.clear()

    def _record(self, number: int) -> TrialRecord:
        return self.log.trials[number]

    def _write(self, number: int, change: dict[str, Any]) -> None:
        record = self._record(number)
        attempt = record.last
        if self.log.claimant(number, attempt) != self.log.worker:
            attempt = newest_attempt(self.log, record) - 1  # Raises TrialLostError, with the name of the other worker.
        self.log.write(number, attempt, change)

    def _check_updatable(self, trial_id: int) -> FrozenTrial:
        trial = self.get_trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return trial

    def _check_study(self, study_id: int) -> None:
        if study_id != STUDY_ID:
            raise KeyError(f"there is no study {study_id}")


def _to_frozen(record: TrialRecord) -> FrozenTrial:
    params = {name: (value, _distribution(text)) for name, (value, text) in record.merged("params").items()}
    attempts = [record.attempts[k] for k in sorted(record.attempts)]
    deciding = record.deciding
    started = next((attempt.started for attempt in attempts if attempt.started is not None), None)
    ended = None if deciding is None else deciding.ended
    state = "RUNNING" if record.state == "RELEASED" else record.state
    return FrozenTrial(
        number=record.number,
        trial_id=record.number,
        state=TrialState[state],
        value=None,
        values=None if record.values is None else list(record.values),
        datetime_start=None if started is None else datetime.fromtimestamp(started),
        datetime_complete=None if ended is None else datetime.fromtimestamp(ended),
        params={name: distribution.to_external_repr(value) for name, (value, distribution) in params.items()},
        distributions={name: distribution for name, (_, distribution) in params.items()},
        user_attrs=record.merged("user"),
        system_attrs=record.merged("system"),
        intermediate_values=record.merged("intermediate"),
    )


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _as_change(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial that Optuna hands over, such as an enqueued one, as one event."""
    return {
        "state": trial.state.name,
        "values": trial.values,
        "started": None if trial.datetime_start is None else trial.datetime_start.timestamp(),
        "ended": None if trial.datetime_complete is None else trial.datetime_complete.timestamp(),
        "params": {
            name: (distribution.to_internal_repr(trial.params[name]), distribution_to_json(distribution))
            for name, distribution in trial.distributions.items()
        },
        "intermediate": trial.intermediate_values,
        "user": trial.user_attrs,
        "system": trial.system_attrs,
    }
