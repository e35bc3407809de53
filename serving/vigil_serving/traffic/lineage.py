"""Lineage of a traffic log: which bundle's decisions it has."""

from pathlib import Path

from vigil_data.filesystem import StrPath, sha256_json
from vigil_data.lineage import Input, Node, record
from vigil_serving.traffic.options import Origin


def traffic_digest(folder: StrPath, bundle: str) -> str:
    """Return the digest of a log's decisions of a bundle in the lineage."""
    return sha256_json([str(Path(folder).resolve()), bundle])


def record_traffic(folder: StrPath, origin: Origin) -> None:
    """Record that a log has decisions of a bundle."""
    path = Path(folder).resolve()
    facts = {"source": origin.source, "role": origin.role, "policy": origin.policy}
    node = Node("traffic", traffic_digest(path, origin.bundle), path.name, str(path), facts)
    record(node, [Input("bundle", origin.bundle, origin.role)])
