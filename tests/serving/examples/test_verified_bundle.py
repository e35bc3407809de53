"""The bundle that the guide and the client run is verified with its calibration by presence and its policy."""

from pathlib import Path

from vigil_serving.parity.verify import verify_bundle


def test_verify_bundle_compares_actions(text_image_bundle: Path) -> None:
    found = verify_bundle(text_image_bundle)
    assert any(p.backend == "ONNX, graph by graph" for p in found.parity)
    assert all(p.flips == p.action_flips == 0 for p in found.parity)
