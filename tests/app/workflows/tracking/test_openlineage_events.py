"""OpenLineage: events that the package's own classes accept, whose graph is the ledger's, sent any number of times."""

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from openlineage.client.event_v2 import RunEvent
from openlineage.client.serde import Serde
from typer.testing import CliRunner

from vigil.cli import build
from vigil.workflows.tracking.openlineage_events import API_KEY, dataset_name, run_event, run_uuid, send_openlineage
from vigil_data.errors import Failure, UserError
from vigil_data.lineage import Event, Graph, Input, Node, record


def event(second, node, *inputs):
    return Event(f"2026-01-01T00:00:0{second}+00:00", "me", "vigil", node, inputs)


OLD = Node("dataset", "aaaa1111", "posts", "/data/posts", {"rows": 10})
NEW = Node("dataset", "bbbb2222", "posts", "/data/posts", {"rows": 12, "by": {"command": "join"}})
RUN = Node("run", "cccc3333", "scam", "/runs/scam", {"commit": "abc", "dirty": False})
BUNDLE = Node("bundle", "dddd4444", "scam", "/bundles/scam")


@pytest.fixture
def graph():
    return Graph(
        [
            event(1, OLD),
            event(2, NEW, OLD.as_input("before")),
            event(3, RUN, NEW.as_input("data")),
            event(4, BUNDLE, RUN.as_input("weights"), Input("policy", "eeee5555", "policy")),
        ]
    )


def edges(lines):
    """Return name and version of each input and output of the events."""

    def key(dataset):
        return dataset["name"], dataset["facets"]["version"]["datasetVersion"]

    return {(key(of), key(line["outputs"][0])) for line in lines for of in line["inputs"]}


def test_events_have_the_graph_of_the_ledger_and_are_written_once(graph, tmp_path):
    file = tmp_path / "events" / "lineage.jsonl"
    assert send_openlineage(graph.nodes(), graph, str(file)) == 4, "the policy is known as an input only"
    before = file.read_bytes()
    assert send_openlineage(graph.nodes(), graph, str(file)) == 0
    assert file.read_bytes() == before
    lines = [json.loads(line) for line in before.splitlines()]
    assert edges(lines) == {
        (("dataset/posts", "aaaa1111"), ("dataset/posts", "bbbb2222")),
        (("dataset/posts", "bbbb2222"), ("run/scam-cccc3333", "cccc3333")),
        (("run/scam-cccc3333", "cccc3333"), ("bundle/scam-dddd4444", "dddd4444")),
        (("policy/eeee5555-eeee5555", "eeee5555"), ("bundle/scam-dddd4444", "dddd4444")),
    }
    for line in lines:
        assert line["eventType"] == "COMPLETE"
        assert uuid.UUID(line["run"]["runId"]).version == 5
        assert line["schemaURL"].endswith("RunEvent")
    tags = {tag["key"]: tag["value"] for tag in lines[1]["outputs"][0]["facets"]["tags"]["tags"]}
    assert tags == {"path": "/data/posts", "rows": "12", "by.command": "join"}


def test_run_event_is_accepted_by_the_package_and_deterministic(graph):
    made = [run_event(graph.made(node)) for node in graph.nodes() if graph.made(node)]
    assert all(isinstance(one, RunEvent) for one in made)
    again = [run_event(graph.made(node)) for node in graph.nodes() if graph.made(node)]
    assert [Serde.to_json(one) for one in made] == [Serde.to_json(one) for one in again]
    assert run_uuid(RUN) != run_uuid(BUNDLE)
    assert dataset_name(OLD) == dataset_name(NEW)


@pytest.fixture
def server():
    received, status = [], [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            self.send_response(status[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received, status
    server.shutdown()
    server.server_close()


def test_events_are_sent_to_a_server_in_the_order_of_the_ledger(server, graph, monkeypatch):
    url, received, _ = server
    monkeypatch.setenv(API_KEY, "secret")
    assert send_openlineage(graph.walk(BUNDLE, "up"), graph, url) == 4
    assert {(path, key) for path, key, _ in received} == {("/api/v1/lineage", "Bearer secret")}
    assert [line["outputs"][0]["name"] for *_, line in received] == [dataset_name(node) for node in (OLD, NEW, RUN, BUNDLE)]


def test_send_openlineage_names_the_trouble(server, graph, tmp_path):
    url, _, status = server
    status[0] = 403
    with pytest.raises(Failure, match=f"^{url}: the server answers HTTP 403; set {API_KEY}"):
        send_openlineage([RUN], graph, url)
    with pytest.raises(Failure, match=r"^http://127.0.0.1:9: cannot be reached"):
        send_openlineage([RUN], graph, "http://127.0.0.1:9")
    (tmp_path / "notes.txt").write_text("something else")
    with pytest.raises(UserError, match="not a file of OpenLineage run events"):
        send_openlineage([RUN], graph, str(tmp_path / "notes.txt"))


def test_lineage_command_writes_the_events_of_what_it_shows(tmp_path):
    record(OLD)
    record(RUN, [OLD.as_input("data")])
    record(BUNDLE, [RUN.as_input("weights")])
    file = tmp_path / "lineage.jsonl"
    ran = CliRunner().invoke(build(), ["lineage", "run:cccc", "--up", "--openlineage", str(file)], catch_exceptions=False)
    assert ran.exit_code == 0
    assert f"OpenLineage: 2 events to {file}" in ran.output
    outputs = [json.loads(line)["outputs"][0]["name"] for line in file.read_text().splitlines()]
    assert outputs == [dataset_name(OLD), dataset_name(RUN)], "the bundle is not above the run"
