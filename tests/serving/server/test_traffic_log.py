"""The traffic log of a server: every decision, of the shadow too, and answers that do not depend on it."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from logged_traffic import ids, logged, seconds_lost, wait_for

from vigil import cli
from vigil_serving.server.service import Service
from vigil_serving.traffic.options import TrafficLogOptions
from vigil_serving.traffic.segments import recover

from .conftest import ServerProcess, as_json
from .test_app import counters, run


def test_serve_logs_live_and_shadow_decisions_and_a_kill_loses_less_than_a_second(
    start: Callable[..., ServerProcess], exported, strict: Path, items: list[Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ("--log", str(log), "--log-column", "campaign", "--shadow", str(strict))
    running = start(exported.bundle, *options)
    given = {**as_json(items[0]), "columns": {"campaign": "c1", "language": "en", "exposure": 3}}
    answer = running.post("/v1/score", json={"items": [given]}).json()
    [expected] = answer["decisions"]
    wait_for(lambda: len(logged(log)) == 2)
    by_role = {row["role"]: row for row in logged(log)}
    live, shadow = by_role["live"], by_role["shadow"]
    assert (live["bundle"], live["policy"], live["action"]) == (answer["digest"], None, None)
    assert {label: pytest.approx(live[f"probability.{label}"]) for label in expected["probabilities"]} == expected[
        "probabilities"
    ]
    assert live["labels"] == expected["labels"]
    assert (live["id"], live["campaign"], live["language"], live["exposure"]) == (items[0].id, "c1", "en", 3.0)
    assert shadow["policy"] == "house version 3"
    assert (len(shadow["labels"]), shadow["reasons"][0]["label"]) == (3, shadow["labels"][0])
    assert b"vigil_traffic_rows_total 2.0" in running.get("/metrics").content
    answered = []
    end = time.monotonic() + 1.5
    with httpx.Client() as client:
        while time.monotonic() < end:
            id_ = f"n{len(answered)}"
            assert client.post(f"{running.base}/v1/score", json={"items": [{"id": id_, "text": ["x"]}]}).status_code == 200
            answered.append((id_, time.time()))
    running.process.kill()
    killed = time.time()
    running.process.wait()
    assert recover(log) == 1
    kept = set(ids(logged(log)))
    assert seconds_lost(answered, kept, killed) < 1.0
    assert len(kept) > 10


def test_service_answers_while_the_disk_is_full(make_service: Callable[..., Service], small_disk: Path) -> None:
    service = make_service(log=TrafficLogOptions(small_disk / "log"))
    filler = small_disk / "filler"

    async def work(client: httpx.AsyncClient) -> dict[str, float]:
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1 << 22))
        seconds = 0.0
        for n in range(30):
            start = time.perf_counter()
            items = [{"id": f"{n} {k}", "columns": {"author": "x" * 900}} for k in range(20)]
            answer = await client.post("/v1/score", json={"items": items})
            seconds = max(seconds, time.perf_counter() - start)
            assert answer.status_code == 200
        assert seconds < 2
        wait_for(lambda: counters(service.metrics.text().decode())["vigil_traffic_failed_total"] > 0)
        filler.unlink()
        return counters((await client.get("/metrics")).text)

    seen = run(service, work)
    assert seen["vigil_traffic_failed_total"] > 0
    assert len(set(ids(logged(small_disk / "log")))) == 600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--log-days", "3"], "--log-days: needs --log DIR"),
        (["--log", "log", "--log-column", "author"], "--log-column author: is always logged; leave it out"),
        (["--log", "file"], "file: is a file; name a folder for the traffic log"),
    ],
)
def test_serve_refuses_options_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    monkeypatch.setattr(sys, "argv", ["vigil", "serve", "bundle", *options])
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert (status.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")


def test_serve_without_pyarrow_names_the_extra(tmp_path: Path) -> None:
    program = "import sys; sys.modules['pyarrow'] = None; from vigil.entry import main; main()"
    command = [sys.executable, "-c", program, "serve", str(tmp_path), "--log", str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the package pyarrow is not installed; install it with `pip install 'vigil[score]'`\n",
    )
