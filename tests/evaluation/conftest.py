"""Fixtures: predictions tables, results of a full evaluation, and a browser."""

import html
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

Make = Callable[..., pa.Table]


@pytest.fixture(scope="session")
def table_of() -> Make:
    """Make a predictions table from label to (targets, probabilities) and further columns."""

    def make(labels: Mapping[str, tuple[Sequence[float | None], Sequence[float]]], **columns: Any) -> pa.Table:
        rows = len(next(iter(labels.values()))[0])
        table: dict[str, Any] = {"id": [f"item-{i}" for i in range(rows)]}
        for label, (targets, probabilities) in labels.items():
            table[f"target.{label}"] = pa.array(targets, pa.float32())
            table[f"probability.{label}"] = pa.array(probabilities, pa.float32())
        return pa.table(table | columns)

    return make


@pytest.fixture(scope="session")
def random_table(table_of: Make) -> pa.Table:
    """400 items with unknown targets; three labels, one never known; presence and two slices, one with nulls."""
    random = np.random.default_rng(0)
    labels = {}
    for label, share in (("tobacco", 0.3), ("scams", 0.1), ("unlabelled", 0.0)):
        targets = (random.random(400) < share).astype(float)
        probabilities = np.clip(0.55 * targets + 0.6 * random.random(400), 0, 1)
        unknown = random.random(400) < (0.2 if share else 1.1)
        labels[label] = ([None if u else t for t, u in zip(targets, unknown, strict=True)], probabilities)
    return table_of(
        labels,
        presence=random.choice(["text", "text+image", "none"], 400).tolist(),
        language=[None if r < 0.1 else "en" if r < 0.7 else "de" for r in random.random(400)],
        functionality=random.choice(["negation", "homonym"], 400).tolist(),
    )


@pytest.fixture(scope="session")
def report_case(table_of: Make) -> dict[str, Any]:
    """Data and results for every section of the report: 1,500 items and four labels, calibrated on 1,500 others."""
    from vigil_evaluation.calibration.fit import fit_calibration
    from vigil_evaluation.evaluate import evaluate_data
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_evaluation.policy.compile import compile_policy
    from vigil_evaluation.policy.specs import Policy
    from vigil_evaluation.predictions import prediction_arrays
    from vigil_evaluation.specs import EvaluationSpec

    labels = ("tobacco", "scams", "adverts", "unlabelled")
    table, others = (_forum(table_of, labels, seed) for seed in (5, 6))
    spec = EvaluationSpec(
        slices=("language", "absent"),
        crosses=(("language", "presence"),),
        identities=("identity",),
        replicates=200,
        cluster="author",
    )
    calibrated = fit_calibration(
        *prediction_arrays(others, labels), labels, spec, presence_N=others.column("presence").to_pylist()
    )
    table, others = (
        _calibrated(one, calibrated.calibration.apply(prediction_arrays(one, labels)[1], None), labels) for one in (table, others)
    )
    policy = compile_policy(Policy.model_validate(POLICY), others, labels)
    facts = {"run": "winter", "split": "test"}
    data = EvaluationData.from_table(table, labels, dict.fromkeys(labels, 0.4), spec)
    results = evaluate_data(data, facts, calibrated=calibrated, policy=policy)
    return {"data": data, "results": results, "spec": spec, "calibrated": calibrated, "policy": policy}


def _calibrated(table: pa.Table, probabilities_NL: Any, labels: Sequence[str]) -> pa.Table:
    for i, label in enumerate(labels):
        place = table.column_names.index(f"probability.{label}")
        table = table.set_column(place, f"probability.{label}", pa.array(probabilities_NL[:, i]))
    return table


POLICY = {
    "name": "forum",
    "actions": {
        "review": {"must": ["at most 30 % of traffic"], "cost": 2},
        "remove": {"must": ["precision at least 75 %"], "appeals": {"wrong": "10 %", "cost": 5}},
    },
    "labels": {"tobacco": ["remove", "review"], "scams": ["review"]},
}


def _forum(table_of: Make, labels: Sequence[str], seed: int) -> pa.Table:
    """Items with poor decisions in one language with an image, and for one group of people."""
    random, rows = np.random.default_rng(seed), 1500
    presence = random.choice(["text", "text+image", "image", "text+audio"], rows, p=[0.6, 0.25, 0.1, 0.05])
    language = random.choice(["en", "de", "ar", "hi"], rows)
    identity = np.where(random.random(rows) < 0.4, random.choice(["anglers", "bakers", "sailors"], rows), "")
    made = {}
    for i, label in enumerate(labels):
        targets = (random.random(rows) < (0.3, 0.15, 0.05, 0.1)[i]).astype(float)
        logits = np.where(targets > 0, 1.5, -2.5) + random.normal(0, 1.2, rows)
        logits += np.where((language == "de") & (presence == "text+image"), np.where(targets > 0, -3, 2.5), 0)
        logits += np.where((identity == "bakers") & (i == 0), 2.5, 0)
        unknown = random.random(rows) < (0.1, 0.3, 0.0, 1.1)[i]
        known = [None if u else t for t, u in zip(targets.tolist(), unknown, strict=True)]
        made[label] = (known, 1 / (1 + np.exp(-logits)))
    texts = [
        "A short note about the garden \N{SUNFLOWER}.",
        "\u0645\u0644\u0627\u062d\u0638\u0629 \u0642\u0635\u064a\u0631\u0629",
        "A long note. " * 100,
    ]
    return table_of(
        made,
        presence=presence.tolist(),
        language=language.tolist(),
        identity=[value or None for value in identity.tolist()],
        author=[f"author-{n}" for n in random.integers(0, 500, rows)],
        functionality=[None if r < 0.6 else "negation" if r < 0.8 else "homonym" for r in random.random(rows)],
        text=[texts[i % 3] for i in range(rows)],
    )


@pytest.fixture
def browse(chromium: str, tmp_path: Path) -> Callable[..., Any]:
    """Open a page in a frame of some width, run a script in it, and get what it returns; any message on the console fails."""

    def run(page: str, script: str, width: int = 1300, *, dark: bool = False) -> Any:
        probe = tmp_path / "probe.html"
        probe.write_text(PROBE % (width, html.escape(page), script), encoding="utf-8")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        command += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=3000"]
        command += ["--enable-blink-features=ComputedAccessibilityInfo"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--dump-dom"]
        command += ["--blink-settings=preferredColorScheme=0"] if dark else []
        ran = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, check=True, timeout=120)
        output = re.search(r"<output>(.*?)</output>", ran.stdout, re.DOTALL)
        assert output, ran.stdout[-500:] + ran.stderr[-2000:]
        assert [line for line in ran.stderr.splitlines() if "CONSOLE" in line] == []
        return json.loads(html.unescape(output[1]))

    return run


PROBE = """<!doctype html><iframe id=frame width=%d height=800 style="border:0" srcdoc="%s"></iframe>
<script>
frame.addEventListener("load", async () => {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const result = document.createElement("output");
  result.textContent = JSON.stringify(await (async () => { %s })() ?? null);
  document.body.append(result);
});
</script>"""
