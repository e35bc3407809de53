"""registry_link: W&B's alias follows the local promotion, there and back, and a link that failed is made by the next command."""

import json
import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from vigil.cli import build
from vigil_data.errors import Failure, UserError
from vigil_data.lineage import read_ledger
from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.manifest import METADATA, write_manifest
from vigil_training.tracking import artifacts

CHAMPION = "wandb-registry-model/scam:champion"


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(build(), ["promote", *map(str, arguments), "--wandb", "model/scam"])


def test_the_alias_in_the_registry_follows_the_local_one(bundle_copy: Path, wandb_server: Any, tmp_path: Path) -> None:
    models = tmp_path / "models"
    first, second = (tracked(shutil.copytree(bundle_copy, tmp_path / name), name * 8) for name in "12")
    done = call(first, "--models", models, "--without-comparison")
    assert isinstance(done.exception, Failure)
    assert "team/vigil at" in str(done.exception)
    assert "has no artifact bundle-11111111 of this bundle" in str(done.exception)
    assert f"the promotion stands, only the link in W&B is missing; make it with `vigil promote {first} --to champion" in str(
        done.exception
    )
    assert (models / "champion").resolve() == first
    [promoted] = read_ledger().nodes("promotion")
    assert (promoted.facts["registry"], promoted.path) == ("model/scam", str(models / "promotions.jsonl"))

    for bundle in (first, second):
        artifacts.log_folder(bundle, f"team/vigil/bundle-{bundle.name * 8}", type="bundle", digest=load_bundle(bundle).digest)
    repeated = call(first, "--models", models)
    assert repeated.output.endswith("linked as wandb-registry-model/scam:champion in W&B\n"), repeated.exception
    assert wandb_server.artifacts.linked()[CHAMPION] == load_bundle(first).digest

    record = models / "promotions.jsonl"
    record.write_text(record.read_text() + after(record, first, second))
    (models / "champion").unlink()
    (models / "champion").symlink_to(second)
    assert call(second, "--models", models).exit_code == 0
    assert wandb_server.artifacts.linked()[CHAMPION] == load_bundle(second).digest
    assert call("--back", "--models", models).exit_code == 0
    assert wandb_server.artifacts.linked()[CHAMPION] == load_bundle(first).digest
    assert (models / "champion").resolve() == first


def tracked(bundle: Path, run_id: str) -> Path:
    """Make a bundle one of a tracked run."""
    values = json.loads((bundle / METADATA).read_text())
    values["lineage"] = {"run": f"runs/{run_id}", "run_id": run_id, "wandb": {"project": "vigil", "entity": "team"}}
    (bundle / METADATA).write_text(json.dumps(values))
    write_manifest(bundle)
    return bundle


def after(record: Path, first: Path, second: Path) -> str:
    """Return the line of a promotion of ``second`` that passed, after that of ``first``."""
    from hashlib import sha256

    [line] = record.read_text().splitlines()
    sides = [{"path": str(path), "digest": load_bundle(path).digest} for path in (first, second)]
    made = json.loads(line) | {"previous": sides[0], "bundle": sides[1], "line_before": sha256(line.encode()).hexdigest()}
    return json.dumps(made) + "\n"


def test_a_bundle_of_an_untracked_run_is_promoted_and_not_linked(bundle_copy: Path, tmp_path: Path) -> None:
    done = call(bundle_copy, "--models", tmp_path / "models", "--without-comparison")
    assert isinstance(done.exception, Failure)
    assert "its run was not tracked" in str(done.exception)
    assert (tmp_path / "models" / "champion").resolve() == bundle_copy


def test_a_name_that_no_registry_has_is_refused_before_the_promotion(bundle_copy: Path, tmp_path: Path) -> None:
    arguments = ["promote", str(bundle_copy), "--models", str(tmp_path / "models"), "--without-comparison", "--wandb", "scam"]
    error = CliRunner().invoke(build(), arguments).exception
    assert isinstance(error, UserError)
    assert "is no name at W&B" in str(error)
    assert not (tmp_path / "models").exists()
