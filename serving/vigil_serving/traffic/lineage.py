"""Lineage of a traffic log: which bundle's decisions it has."""

from pathlib import Path

from vigil_data.filesystem import StrPath, sha256_json
from vigil_data.lineage import Input, Node, record
from vigil_serving.traffic.options import Origin


def record_traffic(folder: StrPath, origin: Origin) -> None:
    """Record that a log has decisions of a bundle."""
    path = Path(folder).resolve()
    facts = {"source": origin.source, "role": origin.role, "policy": origin.policy}
    node = Node("traffic", sha256_json([str(path), origin.bundle]), path.name, str(path), facts)
    record(node, [Input("bundle", origin.bundle, origin.role)])
