"""Optuna's description of a study: its storages must return one, but the type is not public."""

from collections.abc import Sequence
from typing import Any

from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy


def frozen_study(
    name: str, directions: Sequence[StudyDirection], user_attrs: dict[str, Any], system_attrs: dict[str, Any], study_id: int
) -> FrozenStudy:
    """Return a study as :meth:`optuna.storages.BaseStorage.get_all_studies` must."""
    return FrozenStudy(name, None, user_attrs, system_attrs, study_id, directions=list(directions))
