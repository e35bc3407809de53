"""Signals that ask for a checkpoint and an end."""

import os
import signal

from vigil_training.distributed.preemption import Preemption


def test_preemption_records_the_first_signal_and_restores_handlers():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with Preemption() as preemption:
        assert preemption.asked is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert preemption.asked == "SIGTERM"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
