"""The ledger's events as OpenLineage events, to a file or to a server such as Marquez.

Each node is a run with the node as its output dataset: of a dataset one name with its versions, of all else one for each digest.
Run ids follow from the nodes, so that an event that is sent again replaces itself.

Example:
    >>> graph = read_ledger()
    >>> send_openlineage(graph.walk(graph.find("bundles/scam"), "up"), graph, "http://marquez:5000")
    4
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import write_file
from vigil_data.lineage import Event, Graph, Input, Node

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent
    from openlineage.client.generated.base import DatasetFacet

NAMESPACE = "vigil"
PRODUCER = "urn:vigil"
API_KEY = "OPENLINEAGE_API_KEY"
"""Environment variable of the server's API key."""

_MAX_VALUE_CHARACTERS = 200


def send_openlineage(nodes: Iterable[Node], graph: Graph, to: str) -> int:
    """Send the events that made some nodes, those of the earliest first.

    Args:
        nodes: the nodes; those that are known only as inputs of others have no event.
        graph: the ledger's graph.
        to: a URL, or a file to which lines of JSON are added; a run that is in it already is left alone.

    Returns:
        Number of events: sent to a URL, or in the file that were not there.

    Raises:
        UserError: if the file holds something else, or the URL no host.
        Failure: if the server cannot be reached or refuses, or the file cannot be written.
    """
    made = sorted({event.node.key: event for node in nodes if (event := graph.made(node)) is not None}.values(), key=_by_time)
    events = [run_event(event) for event in made]
    if urlsplit(to).scheme in ("http", "https"):
        _send(events, to)
        return len(events)
    return _append(events, Path(to))


def run_event(event: Event) -> "RunEvent":
    """Return the OpenLineage event of one event of the ledger."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.generated.job_type_job import JobTypeJobFacet
    from openlineage.client.generated.processing_engine_run import ProcessingEngineRunFacet

    engine = ProcessingEngineRunFacet(version=version("vigil"), name="vigil", producer=PRODUCER)
    kind = JobTypeJobFacet(processingType="BATCH", integration="VIGIL", jobType="JOB", producer=PRODUCER)
    return RunEvent(
        eventTime=event.time,
        eventType=RunState.COMPLETE,
        run=Run(runId=run_uuid(event.node), facets={"processing_engine": engine}),
        job=Job(namespace=NAMESPACE, name=f"vigil.{event.node.kind}", facets={"jobType": kind}),
        inputs=[InputDataset(NAMESPACE, dataset_name(of), facets=_facets(of, of.role)) for of in event.inputs],
        outputs=[OutputDataset(NAMESPACE, dataset_name(event.node), facets=_facets(event.node, ""))],
        producer=PRODUCER,
    )


def run_uuid(node: Node | Input) -> str:
    """Return the id of the run that made a node: the same on every machine."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"vigil:{node.kind}:{node.digest}"))


def dataset_name(node: Node | Input) -> str:
    """Return the name of a node as an OpenLineage dataset; of a dataset all versions have one."""
    name = node.name or Path(node.path).name or node.digest[:12]
    return f"{node.kind}/{name}" if node.kind == "dataset" else f"{node.kind}/{name}-{node.digest[:12]}"


def _facets(node: Node | Input, role: str) -> "dict[str, DatasetFacet]":
    """Return the version, and facts as tags; paths and roles too."""
    from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
    from openlineage.client.generated.tags_dataset import TagsDatasetFacet, TagsDatasetFacetFields

    facts = {"role": role, "path": node.path, **node.facts}
    tags = [TagsDatasetFacetFields(key, value[:_MAX_VALUE_CHARACTERS], "INTEGRATION") for key, value in _flat(facts) if value]
    return {
        "version": DatasetVersionDatasetFacet(node.digest, producer=PRODUCER),
        "tags": TagsDatasetFacet(tags, producer=PRODUCER),
    }


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _send(events: "Iterable[RunEvent]", to: str) -> None:
    import requests
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport

    url = urlsplit(to)
    if not url.hostname:
        raise UserError(f"--openlineage {to}: a URL without a host; write http://HOST:PORT")
    config = HttpConfig(url=f"{url.scheme}://{url.netloc}", retry={"total": 2, "backoff_factor": 0.2})
    if endpoint := url.path.strip("/"):
        config.endpoint = endpoint
    if key := os.environ.get(API_KEY):
        config.auth = ApiKeyTokenProvider({"apiKey": key})
    transport = HttpTransport(config)
    try:
        for event in events:
            transport.emit(event)
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hint = f"; set {API_KEY}" if status in (401, 403) else ""
        raise Failure(f"{to}: the server answers HTTP {status}{hint}; the same command sends all of it again") from error
    except requests.RequestException as error:
        raise Failure(f"{to}: cannot be reached ({type(error).__name__}); the same command sends all of it again") from error
    finally:
        transport.close(1)


def _append(events: "Iterable[RunEvent]", path: Path) -> int:
    from openlineage.client.serde import Serde

    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        there = {json.loads(line)["run"]["runId"] for line in lines if line.strip()}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--openlineage {path}: not a file of OpenLineage run events, one a line; name a new file") from None
    added = [Serde.to_json(event) for event in events if event.run.runId not in there]
    if added:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, "\n".join([*lines, *added]) + "\n")
    return len(added)


def _by_time(event: Event) -> str:
    return event.time
