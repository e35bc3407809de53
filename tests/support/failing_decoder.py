"""A decoder that crashes, hangs or fills memory as its data say, for the pool of decoding processes."""

import os
import signal
import time

from vigil_data.errors import MediaError
from vigil_data.items import Modality
from vigil_data.quality.checks.media_pool import MediaLimits


def decode(modality: Modality, data: bytes, limits: MediaLimits) -> str:
    """Do what ``data`` says."""
    what = data.decode()
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "exit":
        os._exit(3)
    elif what == "hang":
        time.sleep(600)
    elif what == "memory":
        bytearray(2 * limits.memory)
    elif what == "broken":
        raise MediaError("broken")
    elif what == "bug":
        raise RuntimeError("a bug\nof the library")
    return what
