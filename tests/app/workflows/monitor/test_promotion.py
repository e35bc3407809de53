"""promotion: an alias moves only by evidence about exactly the two bundles, and an interrupted promotion is completed."""

import json
import shutil
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vigil.workflows.monitor import promotion
from vigil.workflows.monitor.promotion import LOCK, PENDING, RECORD, NotPromotedError, promote, promote_back, read_promotions
from vigil.workflows.release_gate import RegressionError, without_items, write_comparison
from vigil_data.errors import UserError
from vigil_evaluation.comparison.alignment import ScoredModel
from vigil_evaluation.comparison.compare import compare
from vigil_evaluation.specs import EvaluationSpec
from vigil_monitoring.experiments.results import Arm, ExperimentResult
from vigil_monitoring.results import Period, write_result
from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.manifest import COMPARISON, write_manifest


class Shop:
    """Bundles and evidence about them."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder, self.template, self.models = folder, template, folder / "models"

    def bundle(self, name: str, comparison: Any = None) -> Path:
        path = shutil.copytree(self.template, self.folder / name)
        (path / "README.md").write_text(name)
        if comparison is not None:
            (path / COMPARISON).write_text(json.dumps(comparison))
        write_manifest(path)
        return path

    def compared(self, champion: Path, challenger: Path, *, worse: bool = False, kind: str = "bundle") -> Any:
        random, items = np.random.default_rng(0), 400
        positive = random.random(items) < 0.5
        sides = []
        for path, loss in ((champion, 0.0), (challenger, 3.0 if worse else 0.0)):
            score = 2.0 * positive - 1 - loss * positive + random.normal(size=items) * 0.5
            table = pa.table(
                {
                    "id": [str(i) for i in range(items)],
                    "presence": ["text"] * items,
                    "target.hate": positive.astype(np.float32),
                    "probability.hate": (1 / (1 + np.exp(-score))).astype(np.float32),
                }
            )
            facts = {"digest": load_bundle(path).digest} if kind == "bundle" else {}
            sides.append(ScoredModel(str(path), table, ("hate",), {"hate": 0.5}, kind, None, facts))
        return compare(sides[0], sides[1], EvaluationSpec(replicates=200))

    def comparison(self, champion: Path, challenger: Path, **how: Any) -> Path:
        to = self.folder / f"comparison-{len(list(self.folder.iterdir()))}"
        write_comparison(*self.compared(champion, challenger, **how), to)
        return to

    def experiment(self, champion: Path, challenger: Path, verdict: Any = "promote") -> Path:
        arms = [Arm(load_bundle(path).digest, None, 100, 10) for path in (champion, challenger)]
        found = ExperimentResult("e", verdict, "why", None, "shadow", 30, 30, 0.05, *arms, None, (), (), (), ())
        file = self.folder / f"experiment-{len(list(self.folder.iterdir()))}.json"
        write_result(file, "experiment", Period(date(2026, 11, 1), date(2026, 11, 30)), asdict(found.with_digest()))
        return file

    @property
    def champion(self) -> str:
        return (self.models / "champion").resolve().name


@pytest.fixture
def shop(tmp_path: Path, exported: Any) -> Shop:
    return Shop(tmp_path, exported.bundle)


def test_promote_moves_the_alias_with_evidence_and_back(shop: Shop) -> None:
    first, second, third = (shop.bundle(name) for name in ("first", "second", "third"))
    promote(first, shop.models, by="ann", without_comparison=True)
    assert shop.champion == "first"
    compared, tried = shop.comparison(first, second), shop.experiment(first, second)
    promote(second, shop.models, by="ann", comparison=compared, experiment=tried)
    assert shop.champion == "second"
    made = promote(third, shop.models, by="ben", comparison=shop.comparison(second, third), without_experiment=True)
    assert (shop.champion, made.without_experiment, made.experiment) == ("third", True, None)
    assert [promote_back(shop.models, by="ann").bundle.path for _ in range(2)] == [str(second), str(first)]
    assert shop.champion == "first"
    with pytest.raises(UserError, match="records no champion before the current one"):
        promote_back(shop.models, by="ann")
    record = read_promotions(shop.models)
    assert [(of.by, Path(of.bundle.path).name, of.back) for of in record] == [
        ("ann", "first", False),
        ("ann", "second", False),
        ("ben", "third", False),
        ("ann", "second", True),
        ("ann", "first", True),
    ]
    assert record[1].comparison is not None
    assert record[1].comparison.file == str(compared / COMPARISON)
    assert record[1].experiment is not None
    assert record[1].experiment.file == str(tried)
    assert record[1].previous is not None
    assert record[1].previous.digest == load_bundle(first).digest
    # The link is relative: models and bundles can be moved together.
    assert not Path((shop.models / "champion").readlink()).is_absolute()
    assert sorted(path.name for path in shop.models.iterdir()) == [LOCK, "champion", RECORD]


def test_promote_takes_the_comparison_that_the_bundle_carries(shop: Shop) -> None:
    first, other = shop.bundle("first"), shop.bundle("other")
    promote(first, shop.models, by="a", without_comparison=True)
    found = without_items(shop.compared(first, other)[0])
    promote(shop.bundle("second", comparison=found), shop.models, by="a", without_experiment=True)
    assert shop.champion == "second"
    with pytest.raises(UserError, match=r"its champion is the bundle .*first \([0-9a-f]{12}\), not the bundle [0-9a-f]{12}"):
        promote(shop.bundle("third", comparison=found), shop.models, by="a", without_experiment=True)


def test_promote_refuses_evidence_that_does_not_pass(shop: Shop) -> None:
    first, second = shop.bundle("first"), shop.bundle("second")
    promote(first, shop.models, by="a", without_comparison=True)
    with pytest.raises(RegressionError, match="does not pass"):
        promote(second, shop.models, by="a", comparison=shop.comparison(first, second, worse=True), without_experiment=True)
    compared = shop.comparison(first, second)
    for verdict in ("continue", "reject"):
        with pytest.raises(NotPromotedError, match=f"the verdict is {verdict}: why"):
            promote(second, shop.models, by="a", comparison=compared, experiment=shop.experiment(first, second, verdict))
    assert shop.champion == "first"
    assert len(read_promotions(shop.models)) == 1


def test_promote_refuses_evidence_that_was_altered_or_is_about_other_bundles(shop: Shop) -> None:
    first, second, third = (shop.bundle(name) for name in ("first", "second", "third"))
    promote(first, shop.models, by="a", without_comparison=True)
    good, tried = shop.comparison(first, second), shop.experiment(first, second)

    def refused(message: str, **evidence: Any) -> None:
        with pytest.raises(UserError, match=message):
            promote(second, shop.models, by="a", **{"comparison": good, "experiment": tried, **evidence})
        assert shop.champion == "first"

    failing = shop.comparison(first, second, worse=True) / COMPARISON
    failing.write_text(failing.read_text().replace('"passed": false', '"passed": true'))
    refused("was altered since `vigil compare` wrote it", comparison=failing)
    refused("its challenger is the bundle .*third", comparison=shop.comparison(first, third))
    refused("its champion is the bundle .*third", comparison=shop.comparison(third, second))
    refused("is the table .*, whose hash it does not state", comparison=shop.comparison(first, second, kind="table"))
    refused("no such comparison; make one with `vigil compare .*champion", comparison=shop.folder / "absent")
    refused("no such comparison; make one with", comparison=None)
    changed = shop.experiment(first, second, "continue")
    changed.write_text(changed.read_text().replace('"continue"', '"promote"'))
    refused("was altered since `vigil monitor experiment` wrote it", experiment=changed)
    refused("its challenger is the bundle", experiment=shop.experiment(first, third))
    refused("its champion is the bundle", experiment=shop.experiment(third, second))
    refused("give --experiment FILE.json .* or --without-experiment", experiment=None)
    refused("not both", without_experiment=True)
    refused("--without-comparison is for the first champion only", without_comparison=True)
    drift = shop.folder / "drift.json"
    write_result(drift, "drift", Period(date(2026, 11, 1), date(2026, 11, 30)), {})
    refused("is a result of kind drift", experiment=drift)


def test_promote_refuses_bundles_that_were_altered_or_are_the_champion(shop: Shop) -> None:
    first, second = shop.bundle("first"), shop.bundle("second")
    with pytest.raises(UserError, match=r"there is no champion to compare .* with --without-comparison"):
        promote(first, shop.models, by="a", without_experiment=True)
    with pytest.raises(UserError, match="no such folder"):
        promote_back(shop.models, by="a")
    assert not shop.models.exists()
    promote(first, shop.models, by="a", without_comparison=True)
    again = promote(first, shop.models, by="b", without_comparison=True)
    assert [again] == read_promotions(shop.models)
    compared = shop.comparison(first, second)
    promote(second, shop.models, by="a", comparison=compared, without_experiment=True)
    (first / "README.md").write_text("another text")
    with pytest.raises(UserError, match=r"README\.md was changed after the export"):
        promote_back(shop.models, by="a")
    (second / "README.md").write_text("another text")
    with pytest.raises(UserError, match=r"README\.md was changed after the export"):
        promote(second, shop.models, by="a", comparison=compared, without_experiment=True)


def test_promote_refuses_a_record_that_was_altered(shop: Shop) -> None:
    first, second = shop.bundle("first"), shop.bundle("second")
    promote(first, shop.models, by="ann", without_comparison=True)
    promote(second, shop.models, by="ann", comparison=shop.comparison(first, second), without_experiment=True)
    record = shop.models / RECORD
    record.write_text(record.read_text().replace('"by": "ann"', '"by": "eve"', 1))
    with pytest.raises(UserError, match=r"promotions.jsonl:2: does not follow the line before: the record was altered"):
        promote_back(shop.models, by="ann")
    record.write_text("{")
    with pytest.raises(UserError, match=r"promotions.jsonl:1: is not JSON"):
        promote_back(shop.models, by="ann")


@pytest.mark.parametrize("killed_at", ["pending", "link", "record"])
def test_promote_completes_what_was_interrupted(shop: Shop, monkeypatch: pytest.MonkeyPatch, killed_at: str) -> None:
    first, second = shop.bundle("first"), shop.bundle("second")
    promote(first, shop.models, by="a", without_comparison=True)
    compared = shop.comparison(first, second)
    write, unlink = promotion.write_file, Path.unlink

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed_at == "pending":
            patch.setattr(promotion, "_point", killed)
        elif killed_at == "link":
            patch.setattr(promotion, "write_file", lambda path, text: killed() if path.name == RECORD else write(path, text))
        else:
            patch.setattr(Path, "unlink", lambda path, **how: killed() if path.name == PENDING else unlink(path, **how))
        with pytest.raises(KeyboardInterrupt):
            promote(second, shop.models, by="a", comparison=compared, without_experiment=True)
    assert (shop.models / PENDING).exists()
    assert shop.champion == ("first" if killed_at == "pending" else "second")
    promote(second, shop.models, by="a", comparison=compared, without_experiment=True)
    assert shop.champion == "second"
    assert [Path(of.bundle.path).name for of in read_promotions(shop.models)] == ["first", "second"]
    assert not (shop.models / PENDING).exists()


def test_promote_back_refuses_an_alias_that_was_moved_by_hand(shop: Shop) -> None:
    first, second, third = (shop.bundle(name) for name in ("first", "second", "third"))
    promote(first, shop.models, by="a", without_comparison=True)
    promote(second, shop.models, by="a", comparison=shop.comparison(first, second), without_experiment=True)
    (shop.models / "champion").unlink()
    (shop.models / "champion").symlink_to(third)
    with pytest.raises(UserError, match=r"is .*third, but .*second was promoted last"):
        promote_back(shop.models, by="a")
    (shop.models / "champion").unlink()
    shutil.copytree(third, shop.models / "champion")
    with pytest.raises(UserError, match="is a folder, not a link"):
        promote(third, shop.models, by="a", without_experiment=True)


def test_with_digest_changes_with_every_field() -> None:
    arm = Arm(None, None, 1, 0)
    found = ExperimentResult("e", "promote", "r", None, "shadow", 1, 2, 0.05, arm, arm, None, (), (), (), ()).with_digest()
    assert found.with_digest() == found
    assert replace(found, verdict="reject").with_digest().digest != found.digest
    assert replace(found, challenger=Arm("x", None, 1, 0)).with_digest().digest != found.digest
