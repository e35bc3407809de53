"""Memory of a worker."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, threading
from vigil_data.loading.worker_process import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def read():
    for _ in range(20):
        parts = [b"x" * 1_000_000 for _ in range(8)]
        parts.clear()
thread = threading.Thread(target=read)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_keep_freed_memory_saves_page_faults() -> None:
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "returned")
    )
    assert kept < returned / 2, "memory that was read into is used for the next read"
