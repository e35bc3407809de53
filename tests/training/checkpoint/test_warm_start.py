"""Warm start: labels matched by name keep their logits exactly, parts, adapters, and every refusal."""

import itertools
import json
import shutil

import pytest
import torch

from vigil_data.errors import UserError
from vigil_data.loading.batch import Batch, Segments
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.safety_model import build_model
from vigil_training.checkpoint.reader import load_weights
from vigil_training.checkpoint.warm_start import _canonical, _label_rows, _source_name, match_labels, warm_start
from vigil_training.recipe.specs import InitFrom
from vigil_training.runs.init_from import find_init_problems
from vigil_training.trainer.callbacks import MetricsCallback

LORA = {"rank": 2, "alpha": 6, "targets": ["query", "value"]}


def taxonomy(**heads):
    return {"name": "t", "heads": {head: {"labels": {label: {} for label in labels}} for head, labels in heads.items()}}


@pytest.fixture(scope="module")
def make_text(make_recipe):
    """A function that makes recipes of text alone, whose run takes a few steps."""

    def make(**changes):
        defaults = {
            "inputs__image": None,
            "model__encoders__image": None,
            "training__max_steps": 2,
            "checkpoint__every_steps": None,
            "taxonomy": taxonomy(words=["cat", "dog"], looks=["bright"]),
            "model__fusion": {"kind": "transformer"},
        }
        return make_recipe(**defaults | changes)

    return make


@pytest.fixture(scope="module")
def make_source(make_text, train, tmp_path_factory):
    """A function that trains a source once for each fusion and other changes of the recipe."""
    made = {}

    def make(fusion="transformer", **changes):
        key = json.dumps([fusion, changes])
        if key not in made:
            folder = tmp_path_factory.mktemp("sources") / "run"
            made[key] = train(make_text(model__fusion={"kind": fusion}, training__max_steps=2, **changes), folder)
        return made[key]

    return make


@pytest.fixture
def start(make_text):
    """A function that builds a model and warms it; it returns the model and the report."""

    def start(source, seed=3, **changes):
        values = source if isinstance(source, dict) else {"path": str(source)}
        recipe = make_text(init_from=values, **changes)
        torch.manual_seed(seed)
        model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
        (report,) = warm_start(model, recipe)
        return model, report

    return start


def batch(labels):
    ids = torch.randint(4, 14, (5, 6), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    item = torch.tensor([0, 0, 1, 2, 3])
    segments = {"text": Segments(item, inputs, torch.zeros_like(item), torch.full((5, 2), -1.0))}
    return Batch(("a", "b", "c", "d"), segments, torch.full((4, labels), torch.nan))


def logits(model):
    """Label to its logits."""
    with torch.inference_mode():
        return dict(zip(model.labels, model.eval()(batch(len(model.labels))).logits_NL.T, strict=True))


@pytest.mark.parametrize("fusion", ["mean", "gated", "transformer"])
def test_warm_start_keeps_the_logits_of_old_labels_exactly(fusion, make_source, start):
    source = make_source(fusion)
    before = logits(source.model("best"))
    # Labels and heads in another order, new ones between them, one removed, a head split, a head renamed.
    heads = {"fresh": ["loud"], "appearance": ["dark", "bright"], "words": ["bird", "cat"]}
    model, report = start(source.path, taxonomy=taxonomy(**heads), model__fusion={"kind": fusion})
    after = logits(model)
    for label in ("cat", "bright"):
        if fusion == "mean":
            assert torch.equal(after[label], before[label]), label
        else:  # BLAS rounds a product with five rows of labels otherwise than one with three.
            torch.testing.assert_close(after[label], before[label], rtol=2e-6, atol=2e-6)
    assert report["labels"] == {"kept": ["bright", "cat"], "moved": [], "new": ["loud", "dark", "bird"], "dropped": ["dog"]}
    # What is new has the weights with which this recipe's model is built.
    torch.manual_seed(3)
    recipe = source.recipe.model_copy(update={"taxonomy": Taxonomy.model_validate(taxonomy(**heads))})
    built = build_model(recipe.model, recipe.inputs, recipe.taxonomy).state_dict()
    state = model.state_dict()
    assert torch.equal(state["heads.heads.2.weight_LD"][0], built["heads.heads.2.weight_LD"][0])
    assert not torch.equal(state["heads.heads.2.weight_LD"][1], built["heads.heads.2.weight_LD"][1])
    assert report["fresh"] == {"heads.fresh": sorted(name for name in state if name.startswith("heads.heads.0."))}


def rows(model):
    """Label to its rows in fusion and head."""
    state, found = model.state_dict(), {}
    labels = {"fusion": model.labels} | {f"heads.heads.{i}": part for i, part in enumerate(heads_of(model))}
    for name in model.label_rows():
        for label, row in zip(next(labels[key] for key in labels if name.startswith(key + ".")), state[name], strict=True):
            found[label, name.rpartition(".")[2]] = row
    return found


def heads_of(model):
    parts = iter(model.labels)
    return [[next(parts) for _ in range(size)] for size in model.heads.sizes]


@pytest.mark.parametrize("fusion", ["mean", "gated", "transformer"])
def test_warm_start_takes_the_rows_of_every_label_in_any_order(fusion, make_source, start):
    expected = rows(make_source(fusion).model("best"))
    for words in itertools.permutations(["cat", "dog", "new"]):
        model, _ = start(
            make_source(fusion).path, taxonomy=taxonomy(looks=["bright"], words=words), model__fusion={"kind": fusion}
        )
        found = rows(model)
        assert len(found) == len(expected) + len(expected) // 3
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("fusion", ["mean", "gated", "transformer", "bottleneck"])
def test_label_rows_are_the_tensors_whose_shape_depends_on_the_labels(fusion, make_text):
    def shapes(*words):
        recipe = make_text(taxonomy=taxonomy(words=words), model__fusion={"kind": fusion})
        model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
        return {name: tensor.shape for name, tensor in model.state_dict().items()}, model.label_rows()

    (few, names), (many, _) = shapes("a", "b"), shapes("a", "b", "c")
    assert {name for name in few if few[name] != many[name]} == names


def test_warm_start_follows_the_heads_of_experts_by_name():
    """Heads are numbered in the order of the taxonomy, in the fused prediction and in each expert."""
    old, new = (Taxonomy.model_validate(taxonomy(**heads)) for heads in ({"a": ["p"], "b": ["q"]}, {"b": ["q"], "a": ["p"]}))
    match = match_labels(new, old)
    for prefix in ("heads", "experts.text.heads"):
        name = f"{prefix}.heads.0.project.1.weight"
        assert _source_name(name, match.source_head) == f"{prefix}.heads.1.project.1.weight"
        assert _canonical(name, new) == f"{prefix}.b.project.1.weight"
    own, theirs = torch.zeros(2, 3), torch.arange(6.0).reshape(2, 3)
    rows = _label_rows("experts.text.pool.score.weight", own, theirs, new, old, match)
    assert torch.equal(rows, theirs[[1, 0]])
    row = _label_rows("experts.text.heads.heads.0.weight_LD", own[:1], theirs[:1], new, old, match)
    assert torch.equal(row, theirs[:1])


def test_match_labels_follows_heads_that_are_renamed_split_and_joined():
    old = Taxonomy.model_validate(taxonomy(a=["p", "q"], b=["r"], c=["s", "t", "u"]))
    joined = match_labels(Taxonomy.model_validate(taxonomy(b=["x"], both=["t", "s", "r"], a=["q"], a2=["p"], empty=["y"])), old)
    assert joined.source_head == [1, 2, 0, 0, None]
    assert (joined.kept, joined.moved, joined.new, joined.dropped) == (["t", "s", "q", "p"], ["r"], ["x", "y"], ["u"])


def test_warm_start_of_a_label_that_moved_to_another_head_is_new(make_source, start):
    model, report = start(make_source().path, taxonomy=taxonomy(words=["cat", "dog", "bright"]))
    assert report["labels"]["moved"] == ["bright"]
    before, after = logits(make_source().model("best")), logits(model)
    assert [torch.equal(after[label], before[label]) for label in ("cat", "dog", "bright")] == [True, True, False]


def test_warm_start_takes_the_named_parts_alone(make_source, start):
    source = make_source().model("best").state_dict()
    torch.manual_seed(3)
    recipe = make_source().recipe
    built = build_model(recipe.model, recipe.inputs, recipe.taxonomy).state_dict()
    for parts, taken in (
        (["encoders"], ("encoders.",)),
        (["encoders.text", "fusion"], ("encoders.text.", "fusion.")),
        (["projections", "heads.words"], ("projections.", "heads.heads.0.")),
        (["encoders.text.model.embeddings"], ("encoders.text.model.embeddings.",)),
        ([], ("",)),
    ):
        model, report = start({"path": str(make_source().path), "parts": parts})
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, (source if name.startswith(taken) else built)[name]), (parts, name)
        assert sum(report["loaded"].values()) + sum(map(len, report["fresh"].values())) == len(built)
        assert ("labels" in report) == any(part in ("fusion", "heads.words") for part in parts or ["fusion"])


def test_warm_start_takes_parts_of_several_models(make_source, make_text, make_recipe, train, tmp_path):
    """A later source replaces what an earlier one gave."""
    text = make_source()
    other = train(make_text(seed=5, training__max_steps=2), tmp_path / "other")
    image = train(make_recipe(training__max_steps=2, checkpoint__every_steps=None), tmp_path / "image")
    sources = [
        {"path": str(text.path)},
        {"path": str(image.path), "parts": ["encoders.image"]},
        {"path": str(other.path), "parts": ["heads.words"]},
    ]
    recipe = make_recipe(
        init_from=sources,
        model__fusion={"kind": "transformer"},
        taxonomy=text.recipe.taxonomy.model_dump(mode="json"),
    )
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    reports = warm_start(model, recipe)
    given = {
        "encoders.image.": image.model("best").state_dict(),
        "projections.image.": model.state_dict(),
        "heads.heads.0.": other.model("best").state_dict(),
        "": text.model("best").state_dict(),
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, next(state for start, state in given.items() if name.startswith(start))[name]), name
    assert [report["path"] for report in reports] == [source["path"] for source in sources]
    assert [set(report["loaded"]) for report in reports[1:]] == [{"encoders.image"}, {"heads.words"}]
    assert [set(report["fresh"]) for report in reports] == [{"projections.image"}] * 3
    shutil.rmtree(image.path)
    (problem,) = find_init_problems(recipe)
    assert problem.startswith(f"init_from: {image.path} does not exist")


def test_warm_start_takes_the_lower_layers_of_a_deeper_encoder(make_source, start, make_recipe):
    config = {**make_recipe().model.encoders.text.config, "num_hidden_layers": 1}
    model, report = start(make_source().path, model__encoders__text__config=config)
    source = make_source().model("best").state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())
    assert {name.split(".")[5] for name in report["unused"]["encoders.text"]} == {"1"}


def test_warm_start_prunes_the_feed_forward_layers_of_a_narrower_encoder(make_source, start, make_text, make_recipe):
    source = make_source()
    config = {**make_recipe().model.encoders.text.config, "intermediate_size": 10}
    model, report = start({"path": str(source.path), "prune_feed_forward": True}, model__encoders__text__config=config)
    ours, theirs = model.state_dict(), source.model("best").state_dict()
    assert report["fresh"] == report["unused"] == {}
    narrower = {name for name, tensor in ours.items() if tensor.shape != theirs[name].shape}
    assert {name.split("layer.")[1][2:] for name in narrower} == {
        "intermediate.dense.weight",
        "intermediate.dense.bias",
        "output.dense.weight",
    }
    assert all(ours[name].equal(theirs[name]) for name in ours.keys() - narrower)
    for layer in "01":
        name = f"encoders.text.model.encoder.layer.{layer}."
        before, after = theirs[f"{name}intermediate.dense.weight"].double(), theirs[f"{name}output.dense.weight"].double()
        largest = sorted(sorted(range(len(before)), key=lambda n: -float(before[n].norm() * after[:, n].norm()))[:10])
        assert ours[f"{name}intermediate.dense.weight"].equal(before[largest].float())
        assert ours[f"{name}output.dense.weight"].equal(after[:, largest].float())
    recipe = make_text(init_from=str(source.path), model__encoders__text__config=config)
    (problem,) = find_init_problems(recipe)
    assert "model.encoders.text.config.intermediate_size is 32 there and 10 here" in problem


def test_warm_start_adds_a_modality(make_source, make_recipe):
    recipe = make_recipe(
        init_from=str(make_source().path),
        model__fusion={"kind": "transformer"},
        taxonomy=make_source().recipe.taxonomy.model_dump(mode="json"),
    )
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    (report,) = warm_start(model, recipe)
    assert set(report["fresh"]) == {"encoders.image", "projections.image"}
    before, after = logits(make_source().model("best")), logits(model)
    assert all(torch.equal(after[label], before[label]) for label in before)


@pytest.mark.parametrize(
    ("theirs", "ours"), [(LORA, LORA), (None, LORA), (LORA, None), (LORA, {"rank": 3, "alpha": 3}), ({"rank": 1}, LORA)]
)
def test_warm_start_keeps_the_function_of_an_encoder_with_other_adapters(theirs, ours, make_source, make_text, start):
    source = make_source(model__encoders__text__lora=theirs, optimizer__lr=0.05)
    model, report = start(source.path, model__encoders__text__lora=ours)
    before, after = logits(source.model("best")), logits(model)
    for label in before:
        torch.testing.assert_close(after[label], before[label], rtol=1e-5, atol=1e-5)
    adapters = [name for name in report["fresh"].get("encoders.text", []) if ".lora_" in name]
    assert bool(adapters) == (ours is not None and ours != theirs)
    assert set(report["fresh"]) <= {"encoders.text"}
    plain, _ = start(source.path, model__encoders__text__lora=None)
    if theirs is not None:
        # The adapters were trained: without them the logits differ.
        bare = source.model("best")
        for name, tensor in bare.state_dict().items():
            if ".lora_B." in name:
                assert tensor.abs().max() > 0
                tensor.zero_()
        assert not torch.allclose(logits(bare)["cat"], logits(plain)["cat"], rtol=1e-5, atol=1e-5)


def test_warm_start_reads_a_checkpoint_and_the_last_of_a_run(make_source, start):
    run = make_source()
    for source in (
        {"path": str(run.path), "checkpoint": "last"},
        {"path": str(run.checkpoint("last"))},
    ):
        model, report = start(source)
        assert report["checkpoint"] == run.checkpoint("last").name
        expected = build_model(run.recipe.model, run.recipe.inputs, run.recipe.taxonomy, load_weights=False)
        load_weights(expected, run.checkpoint("last"))
        assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())


def recipe_of(exported, make_recipe, path, **changes):
    """Return a recipe of the exported model that starts from a bundle of it."""
    text = {
        "model_type": "bert",
        "vocab_size": 100,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    random = {"weights": {"kind": "random"}}
    encoders = {
        "text": random | {"config": text},
        "image": random | {"name": "test_resnet", "pool": "none"},
        "audio": random | {"kind": "mel_timm", "name": "test_resnet", "mels": 32},
    }
    inputs = exported.inputs.model_dump(mode="json")
    labels = exported.taxonomy.model_dump(mode="json")
    position = {"model__segment_roles": True, "model__time_position": {}}
    return make_recipe(init_from=str(path), taxonomy=labels, inputs=inputs, model__encoders=encoders, **position, **changes)


def test_warm_start_reads_a_bundle(exported, make_recipe):
    recipe = recipe_of(exported, make_recipe, exported.bundle)
    assert list(find_init_problems(recipe)) == []
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    (report,) = warm_start(model, recipe)
    assert (report["kind"], report["fresh"], report["unused"]) == ("bundle", {}, {})
    expected = exported.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_warm_start_refuses_a_bundle_that_was_altered_or_has_no_torchscript(bundle_copy, exported, make_recipe):
    recipe = recipe_of(exported, make_recipe, bundle_copy)
    script = bundle_copy / "torchscript" / "model.pt"
    content = bytearray(script.read_bytes())
    content[len(content) // 2] ^= 1
    script.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pt"):
        warm_start(build_model(recipe.model, recipe.inputs, recipe.taxonomy), recipe)
    metadata = json.loads((bundle_copy / "bundle.json").read_text())
    del metadata["graphs"]["torchscript"]
    (bundle_copy / "bundle.json").write_text(json.dumps(metadata))
    (problem,) = find_init_problems(recipe)
    assert problem == (
        f"init_from: {bundle_copy}: the bundle has no TorchScript, and ONNX keeps no names of weights; name the run that it was "
        "exported from, or export it with --formats onnx,torchscript"
    )


@pytest.mark.parametrize(
    ("changes", "parts", "problem"),
    [
        ({"model__width": 8}, [], "model.width is 16 there and 8 here; make them equal, or name the parts"),
        ({"model__width": 8}, ["encoders"], None),
        ({"model__fusion": {"kind": "mean"}}, [], "model.fusion.kind is transformer there and mean here"),
        ({"model__fusion": {"kind": "transformer", "layers": 1}}, [], "model.fusion.layers is 2 there and 1 here"),
        ({"model__fusion": {"kind": "transformer", "layers": 1}}, ["encoders", "heads"], None),
        ({"heads": 4}, [], "model.encoders.text.config.num_attention_heads is 2 there and 4 here"),
        ({}, ["encoders.image"], "has no encoders.image; its encoders are of text"),
    ],
)
def test_find_init_problems_names_what_differs(changes, parts, problem, make_source, make_text, make_recipe):
    if "heads" in changes:
        config = {**make_recipe().model.encoders.text.config, "num_attention_heads": changes["heads"]}
        changes = {"model__encoders__text__config": config}
    if parts == ["encoders.image"]:
        recipe = make_recipe(init_from={"path": str(make_source().path), "parts": parts})
    else:
        recipe = make_text(init_from={"path": str(make_source().path), "parts": parts}, **changes)
    found = list(find_init_problems(recipe))
    if problem is None:
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith(f"init_from: {make_source().path}: {problem}")
    with pytest.raises(UserError, match="init_from"):
        warm_start(build_model(recipe.model, recipe.inputs, recipe.taxonomy), recipe)


def test_warm_start_names_the_tensors_that_do_not_fit(make_source, start, make_recipe):
    config = {**make_recipe().model.encoders.text.config, "num_hidden_layers": 3}
    with pytest.raises(UserError, match=r"tensors: 16 missing \(encoders\.text\.model\.encoder\.layer\.2\.attention"):
        start(make_source().path, model__encoders__text__config=config)
    run = make_source()
    model = run.model("best")
    model.projections["text"].project[0] = torch.nn.LayerNorm(5)
    recipe = run.recipe.model_copy(update={"init_from": (InitFrom(path=str(run.path)),)})
    with pytest.raises(UserError) as caught:
        warm_start(model, recipe)
    assert str(caught.value) == (
        f"init_from: {run.path}: the weights do not fit the architecture; tensors: 2 of another shape "
        "(projections.text.project.0.weight [16] -> [5], projections.text.project.0.bias [16] -> [5]); "
        "name the parts to take in init_from.parts"
    )


def test_find_init_problems_of_paths(make_source, make_text, tmp_path):
    def problems(**values):
        return list(find_init_problems(make_text(init_from=values)))

    run = make_source()
    checkpoint = run.checkpoint("best")
    (what,) = problems(path=str(tmp_path / "nowhere"))
    assert what.startswith(f"init_from: {tmp_path / 'nowhere'} does not exist; name a run folder")
    (what,) = problems(path=str(tmp_path))
    assert what.startswith(f"init_from: {tmp_path} is neither a run, nor a checkpoint, nor a bundle")
    shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    (what,) = problems(path=str(tmp_path / checkpoint.name))
    assert "a checkpoint without its run" in what
    (what,) = problems(path=str(checkpoint), checkpoint="last")
    assert what == f"init_from.checkpoint: {checkpoint} is a checkpoint, which has no others; leave this out"
    (tmp_path / "empty").mkdir()
    shutil.copy(run.resolved, tmp_path / "empty")
    (what,) = problems(path=str(tmp_path / "empty"))
    assert what == f"init_from: {tmp_path / 'empty'}: the run has no checkpoint yet"
    assert problems(path=str(run.path)) == problems(path=str(checkpoint)) == []


def test_warm_start_refuses_a_damaged_checkpoint(make_source, start, tmp_path):
    shutil.copytree(make_source().path, tmp_path / "run")
    file = next((tmp_path / "run").rglob("rank-00000.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"rank-00000\.safetensors"):
        start(tmp_path / "run")


class Stop(Exception):
    """Stops a run in these tests."""


def test_fit_recipe_with_init_from_resumes_without_its_source(
    make_source, make_text, train, assert_same_run, monkeypatch, tmp_path
):
    source = tmp_path / "source"
    shutil.copytree(make_source().path, source)
    heads = taxonomy(words=["cat", "new"], looks=["bright"])
    recipe = make_text(init_from=str(source), taxonomy=heads, training__max_steps=6, checkpoint__every_steps=2)
    undisturbed = train(recipe, tmp_path / "undisturbed")
    (facts,) = undisturbed.read_environment()["init_from"]
    assert facts["labels"] == {"kept": ["cat", "bright"], "moved": [], "new": ["new"], "dropped": ["dog"]}
    assert facts["path"] == str(source)
    log = undisturbed.log.read_text()
    assert "labels: kept: cat, bright; new: new; dropped: dog" in log
    record = MetricsCallback.on_train_batch_end

    def stopping(self, trainer, *rest):
        record(self, trainer, *rest)
        if trainer.global_step == 4:
            raise Stop

    monkeypatch.setattr(MetricsCallback, "on_train_batch_end", stopping)
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run")
    monkeypatch.setattr(MetricsCallback, "on_train_batch_end", record)
    shutil.rmtree(source)
    resumed = train(recipe, tmp_path / "run")
    assert_same_run(undisturbed.path, resumed.path)
    assert resumed.read_environment()["init_from"] == [facts]
    assert resumed.log.read_text().count("labels: kept") == 1


def test_recipe_reads_a_path_or_a_block_and_checks_parts(make_text):
    from pydantic import ValidationError

    one = make_text(init_from="runs/a")
    assert one == make_text(init_from={"path": "runs/a"}) == make_text(init_from=["runs/a"])
    assert one.model_dump(mode="json")["init_from"] == {
        "path": "runs/a",
        "parts": [],
        "checkpoint": "best",
        "prune_feed_forward": False,
    }
    both = make_text(init_from=["runs/a", {"path": "runs/b", "parts": ["encoders"], "checkpoint": "last"}])
    assert [source["path"] for source in both.model_dump(mode="json")["init_from"]] == ["runs/a", "runs/b"]
    for recipe in (one, both):
        assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(ValidationError, match="init_from"):
        make_text(init_from=[])
    for parts, message in (
        (
            ["encoder"],
            r"encoder is not a part of a model: encoders, projections, position, fusion, heads \(did you mean encoders\?\)",
        ),
        (["encoders.audio"], "encoders.audio: the model's encoders are text"),
        (["heads.word"], r"heads.word: the model's heads are words, looks \(did you mean words\?\)"),
    ):
        with pytest.raises(ValidationError, match=message):
            make_text(init_from={"path": "a", "parts": parts})
