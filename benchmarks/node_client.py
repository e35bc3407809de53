"""Time of one item in the example client on Node and in Vigil's runtime, from media to decision, on the same bundle.

usage: python benchmarks/node_client.py [--items 100] [--bundle BUNDLE]

The model has the text and image encoders of benchmarks/latency.py. Every item is decided alone, and nothing is cached; the median
of two passes after one that warms up. Both use ONNX Runtime with all cores; the versions differ.

Four runs with the demonstration's bundle (MiniLM, EfficientNet-Lite0 at 80 pixels), 30 to 40 items, on two cores of an AMD EPYC
that had 6 to 12 other processes to run, so only the order of magnitude counts:

    items            Python ms     Node ms       ratio
    text             8.3 to 24.0   5.9 to 16.8   0.25 to 0.99
    text and image  24.5 to 33.9   9.8 to 33.0   0.30 to 1.35
"""

import argparse
import base64
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from latency import make_items, make_recipe

from vigil_data.items import Item
from vigil_modeling.safety_model import build_model
from vigil_serving.export.pipeline import export_model
from vigil_serving.export.publish import Provenance
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.specs import ExportSpec

CLIENT = Path(__file__).parent.parent / "serving" / "examples" / "node" / "client.mjs"


def milliseconds_in_python(scorer: Scorer, items: list[Item]) -> float:
    """Return the median time of one item in Vigil's runtime."""
    spent = []
    for repetition in range(3):
        for item in items:
            start = time.perf_counter()
            scorer.score([item])
            if repetition:
                spent.append(1000 * (time.perf_counter() - start))
    return statistics.median(spent)


def milliseconds_in_node(bundle: Path, items: list[Item], folder: Path) -> float:
    """Return the median time of one item in the client on Node."""
    lines = [
        json.dumps({"id": item.id, "text": item.text, "image": [base64.b64encode(image).decode() for image in item.image]})
        for item in items
    ]
    (folder / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = ["node", str(CLIENT), "time", str(bundle), str(folder / "items.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return float(json.loads(done.stdout)["median_ms"])


def exported(to: Path) -> Path:
    """Export the text and image encoders of benchmarks/latency.py."""
    recipe = make_recipe()
    encoders = recipe.model.encoders.model_copy(update={"audio": None})
    inputs, model = recipe.inputs.model_copy(update={"audio": None}), recipe.model.model_copy(update={"encoders": encoders})
    network = build_model(model, inputs, recipe.taxonomy).eval()
    spec = ExportSpec(formats=("onnx",), examples=0)
    return export_model(network, inputs, recipe.taxonomy, {}, [], to=to, provenance=Provenance("node"), spec=spec).path


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--bundle", type=Path, help="a bundle of text and image (default: export one)")
    arguments = parser.parse_args()
    if shutil.which("node") is None or not CLIENT.with_name("node_modules").is_dir():
        print(f"node or the client's packages are not installed; run `npm ci` in {CLIENT.parent}")
        return 2
    both = [Item(item.id, item.text, item.image) for item in make_items(make_recipe(), arguments.items)]
    with tempfile.TemporaryDirectory() as temporary:
        bundle = arguments.bundle or exported(Path(temporary) / "bundle")
        scorer = Scorer(bundle, cache_bytes=0)
        print("items            Python ms  Node ms  ratio")
        for name, items in (("text", [Item(item.id, item.text) for item in both]), ("text and image", both)):
            python, node = milliseconds_in_python(scorer, items), milliseconds_in_node(bundle, items, Path(temporary))
            print(f"{name:16} {python:9.1f}  {node:7.1f}  {node / python:5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
