"""Step times of ranks."""

import json

import numpy as np
import pytest

from vigil_training.distributed.watchdog import WINDOW_STEPS, StepTimes


def test_step_times_reports_a_slow_rank(caplog):
    times = StepTimes(4)
    found = {}
    for _ in range(WINDOW_STEPS):
        found = times.add(np.array([0.1, 0.1, 0.3, 0.11]))
    assert found["ranks/slowest_rank"] == 2
    seconds = [found[f"ranks/step_seconds_{name}"] for name in ("min", "median", "max")]
    assert seconds == pytest.approx([0.1, 0.105, 0.3])
    assert "rank 2 is slow" in caplog.text
    assert StepTimes(1).add(np.array([0.1])) == {}
    assert json.dumps(found)
