"""Equal training under a single process, DDP and ZeRO, with ranks whose batches lack images or audio."""

import io
import json

import driven_training
import numpy as np
import pytest
import soundfile

STEPS = 24
STRATEGIES = {
    "ddp": {"kind": "ddp", "devices": 2},
    "zero-1": {"kind": "deepspeed", "stage": 1, "devices": 2},
    "zero-2": {"kind": "deepspeed", "stage": 2, "devices": 2},
    "zero-3": {"kind": "deepspeed", "stage": 3, "devices": 2},
    "fsdp2": {"kind": "fsdp2", "devices": 2},
}


def make_audio(random):
    file = io.BytesIO()
    soundfile.write(file, random.normal(0, 0.1, 1600).astype(np.float32), 8000, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def posts(material, tmp_path_factory):
    """A dataset of mostly text, so that many batches lack images, audio or both."""
    from dataclasses import replace

    from vigil_data.dataset.dataset import Dataset, write

    random = np.random.default_rng(5)
    original = Dataset(material / "dataset")
    items = []
    for item in original.take(original.rows()):
        has_audio = random.random() < 0.15
        targets = {**item.targets, "loud": float(random.random() < 0.5) if has_audio else None}
        image = item.image if random.random() < 0.4 or not item.text else ()
        # Every third text is a transcript with a time.
        placed = {"roles": {"text": ("transcript",)}, "times": ((1.5, 2.5),)} if item.text and len(items) % 3 == 0 else {}
        items.append(replace(item, image=image, audio=(make_audio(random),) if has_audio else (), targets=targets, **placed))
    path = tmp_path_factory.mktemp("posts") / "dataset"
    write(path, items)
    return path


@pytest.fixture(scope="module")
def run_strategy(posts, make_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strategies")

    def run(name, strategy, drive=None, status=0, **changes):
        recipe = make_recipe(
            name=name,
            data__dataset=str(posts),
            data__batch={"budget": 80, "pool": 4, "cost": {"image": 16, "second": 40}},
            taxonomy={
                "name": "three",
                "heads": {"words": {"labels": {"cat": {}}}, "media": {"labels": {"bright": {}, "loud": {}}}},
            },
            inputs__audio={"rate": 8000, "window": 0.2},
            model__encoders__audio={
                "kind": "mel_timm",
                "weights": {"kind": "random"},
                "name": "vit_tiny_patch16_224",
                "mels": 16,
                "options": {"img_size": [16, 21], "patch_size": [8, 7], "embed_dim": 16, "depth": 1, "num_heads": 2},
            },
            model__dropout=0.0,
            model__segment_roles=True,
            model__time_position={},
            # Noise would be drawn in another order by one process.
            model__auxiliary_heads={"ogm_ge": {"noise": False}},
            model__encoders__text__config={
                **make_recipe().model.encoders.text.config,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            strategy=strategy,
            **{"training__max_steps": STEPS, "training__epochs": 20, "checkpoint__every_steps": None, **changes},
        )
        (folder / f"{name}.yaml").write_text(recipe.model_dump_json())
        (folder / f"{name}-seen").mkdir(exist_ok=True)
        options = {"every_step": True, "seen": str(folder / f"{name}-seen"), **(drive or {})}
        _, errors = driven_training.train(folder / f"{name}.yaml", folder / name, statuses=(status,), **options)
        return folder / name, errors

    return run


def numbers(run, key="train/loss"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def logged(run, *prefixes):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key for line in lines for key in line if key.startswith(prefixes)}


@pytest.fixture(scope="module")
def one_process(run_strategy):
    """Train on the two ranks' batches in one process; each optimizer step takes both."""
    return run_strategy("one", {"kind": "single"}, {"as_world": 2}, training__accumulate=2)[0]


@pytest.fixture(scope="module")
def several(run_strategy):
    """Train each strategy once, and return its run."""
    made = {}

    def several(name):
        if name not in made:
            made[name], _ = run_strategy(name, STRATEGIES[name])
        return made[name]

    return several


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_have_the_losses_of_one_process(name, one_process, several, posts):
    run = several(name)
    expected, found = numbers(one_process), numbers(run)
    assert list(found) == list(range(1, STEPS + 1)) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    norms = [numbers(each, "train/gradient_norm") for each in (one_process, run)]
    np.testing.assert_allclose(list(norms[1].values()), list(norms[0].values()), rtol=1e-4)
    keys = logged(one_process, "train/loss/", "train/gradient_norm/", "train/padding/", "train/lr/")
    assert {"train/loss/cat", "train/gradient_norm/text", "train/padding/tokens", "train/lr/text"} <= keys
    for key in keys:
        expected, found = numbers(one_process, key), numbers(run, key)
        assert list(found) == list(expected), key
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-3, atol=1e-6, err_msg=key)
    assert_some_steps_are_sparse(run.with_name(f"{name}-seen"), posts)


def assert_some_steps_are_sparse(seen, dataset):
    """Check that in some steps one rank has images, or audio, and the other has none."""
    from vigil_data.dataset.dataset import Dataset

    opened = Dataset(dataset)
    items = {item.id: item for item in opened.take(opened.rows("train"))}
    has = []
    for rank in range(2):
        batches = [json.loads(line)["ids"] for line in (seen / f"rank-{rank}.jsonl").read_text().splitlines()]
        has.append([(any(items[i].image for i in ids), any(items[i].audio for i in ids)) for ids in batches])
    assert len(has[0]) == len(has[1]) == STEPS
    for modality in range(2):
        assert any(a[modality] != b[modality] for a, b in zip(*has, strict=True))


KEYS = ("query_key_value.bias", "key_value.bias", "qkv.bias", "key.bias")


def cut_keys(name, bias):
    """Remove the keys' part of an attention bias: softmax is invariant to it, so Adam amplifies rounding in its gradient."""
    if name.endswith("key.bias"):
        return bias[:0]
    if name.endswith("qkv.bias") or "query_key_value" in name:
        query, _key, rest = bias.chunk(3)
        return np.concatenate([query, rest])
    return bias.chunk(2)[1]


@pytest.mark.parametrize("name", ["zero-1", "zero-2", "zero-3", "fsdp2"])
def test_strategies_consolidate_to_the_weights_of_ddp(name, several, tmp_path):
    from vigil_training.checkpoint.consolidate import consolidate
    from vigil_training.checkpoint.reader import last_checkpoint, load_weights
    from vigil_training.runs.run import Run

    consolidate(last_checkpoint(several(name) / "checkpoints"), tmp_path / "weights.safetensors")
    expected = Run(several("ddp")).model("last").state_dict()
    found = Run(several(name)).model("best")
    load_weights(found, tmp_path / "weights.safetensors")
    for key, value in found.state_dict().items():
        pair = (value, expected[key])
        if any(key.endswith(part) for part in KEYS):
            pair = tuple(cut_keys(key, bias) for bias in pair)
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-5, err_msg=key)


def test_consolidate_names_a_missing_shard(several, tmp_path):
    import shutil

    from vigil_data.errors import UserError
    from vigil_training.checkpoint.consolidate import consolidate
    from vigil_training.checkpoint.reader import last_checkpoint

    copy = tmp_path / f"step-{STEPS:08}"
    shutil.copytree(last_checkpoint(several("zero-3") / "checkpoints"), copy)
    (copy / "rank-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"rank-00001\.safetensors"):
        consolidate(copy, tmp_path / "weights.safetensors")
    assert not (tmp_path / "weights.safetensors").exists()


@pytest.fixture(scope="module")
def one_process_nan(run_strategy):
    """Twelve steps in one process; the seventh has a NaN loss."""
    return run_strategy("one-nan", {"kind": "single"}, {"as_world": 2, "nan": 7}, training__accumulate=2, training__max_steps=12)[
        0
    ]


@pytest.mark.parametrize("name", ["ddp", "zero-2", "zero-3"])
def test_strategies_skip_a_step_whose_gradient_is_nan_on_one_rank(name, run_strategy, one_process_nan):
    found, output = run_strategy(f"{name}-nan", STRATEGIES[name], {"nan": 7}, training__max_steps=12)
    np.testing.assert_allclose(list(numbers(found).values()), list(numbers(one_process_nan).values()), rtol=1e-5)
    assert [numbers(run, "train/gradient_norm")[7] for run in (found, one_process_nan)] == [None, None]
    assert "step 7: the gradient is not finite, so the step is skipped; its items: train-" in output


@pytest.mark.parametrize("name", ["ddp", "zero-3"])
def test_strategies_train_in_bf16_with_activation_checkpointing(name, run_strategy, one_process_nan):
    changes = {"training__max_steps": 12, "training__precision": "bf16", "training__activation_checkpointing": True}
    run, _ = run_strategy(f"{name}-bf16", STRATEGIES[name], **changes)
    exact, found = (list(numbers(each).values())[:7] for each in (one_process_nan, run))
    np.testing.assert_allclose(found, exact, rtol=0.03)
    assert found != exact
