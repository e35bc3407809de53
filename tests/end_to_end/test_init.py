"""The five steps that `vigil init` prints, run as they are printed, up to a decision over HTTP."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from vigil.workflows.new_project import commands

pytestmark = pytest.mark.end_to_end


def test_init_project_from_manifest_to_served_decision(vigil, tmp_path: Path) -> None:
    project = tmp_path / "posts"
    printed = vigil("init", project).stdout
    steps = [step for line in commands("posts") for step in line.split(" && ")]
    assert all(step in printed for step in steps)
    start = time.monotonic()
    for step in steps[:-1]:
        _, *arguments = shlex.split(step)
        vigil(*arguments, cwd=project)
    seconds = time.monotonic() - start
    print(f"{len(steps) - 1} commands in {seconds:.0f} s")

    metrics = json.loads((project / "runs" / "posts" / "evaluation" / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["overall"]["macro"]["average_precision"]["value"] > 0.9
    assert (project / "runs" / "posts" / "policy.json").is_file()

    assert steps[-1] == "vigil serve bundle"
    decision = serve(
        project / "bundle",
        {"items": [{"id": "1", "text": ["You have won a voucher! Send your address and a small fee to claim it before Monday"]}]},
    )
    assert decision["labels"] == ["spam"]
    assert decision["action"] == "remove"


def serve(bundle: Path, request: dict[str, object]) -> dict[str, object]:
    """The first decision on a request to a server that is started for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vigil")), "serve", str(bundle), "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, server.stderr.read() if server.stderr else ""
                time.sleep(0.25)
        body = json.dumps(request).encode()
        question = urllib.request.Request(f"http://127.0.0.1:{port}/v1/score", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(question, timeout=60) as answer:
            return json.load(answer)["decisions"][0]
    finally:
        server.terminate()
        server.communicate(timeout=60)
