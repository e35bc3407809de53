"""A Ray cluster on this machine, for tests of what runs on many."""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

RAY_WARNINGS = [
    # Ray forks only to execute another program, and warns about settings of its own.
    pytest.mark.filterwarnings("ignore:lance is not fork-safe:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:`\w+` is deprecated:DeprecationWarning"),
]
"""Marks of a module that uses :func:`cluster`."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node with one processor, connected; tests add others."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    import ray
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        # A lost node is detected within seconds.
        health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": health}
        made = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=made.address, logging_level=40, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
