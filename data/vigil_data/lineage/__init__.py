"""Lineage: which data, code and recipe made a model, and which models saw an item, from local records alone.

Example:
    >>> record(Node("bundle", digest, "scam", "/w/bundles/scam"), [Input("checkpoint", of, "weights")])
    >>> graph = read_ledger()
    >>> [node.name for node in graph.walk(graph.find("bundles/scam"), "up")]
    ['scam', 'step-00000300', 'scam', 'posts']
"""

from vigil_data.lineage.digests import dataset_node, digest_of_table, identify
from vigil_data.lineage.events import KINDS, Event, Input, Key, Node
from vigil_data.lineage.graph import Direction, Edge, Graph, read_ledger
from vigil_data.lineage.ledger import read_events, record, workspace

__all__ = [
    "KINDS",
    "Direction",
    "Edge",
    "Event",
    "Graph",
    "Input",
    "Key",
    "Node",
    "dataset_node",
    "digest_of_table",
    "identify",
    "read_events",
    "read_ledger",
    "record",
    "workspace",
]
