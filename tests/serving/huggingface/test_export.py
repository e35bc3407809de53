"""A guard's folder in transformers' own classes: the same prompts, the same log odds, the same decisions."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_serving.bundle import manifest
from vigil_serving.huggingface import export
from vigil_serving.llm_server.folder import load_guard_folder
from vigil_serving.llm_server.prompts import batch_prompts
from vigil_serving.parity.compare import ParityError
from vigil_serving.runtime.scorer import Scorer

ITEMS = (
    Item("1", ("A red cat!", "the sun, and rain."), roles={"text": ("title", "body")}),
    Item("2", ("call me now",)),
    Item("3"),
)


def card_parts(folder: Path) -> tuple[list[dict[str, str]], str]:
    """The messages and the program of the model card, as a reader would copy them."""
    card = (folder / "README.md").read_text()
    return json.loads(re.search(r"```json\n(.*?)\n```", card, re.DOTALL)[1]), re.search(
        r"```python\n(.*?)\n```", card, re.DOTALL
    )[1]


@pytest.mark.parametrize(("family", "order"), [("llama", "policy_first"), ("qwen3", "item_first"), ("gemma", "policy_first")])
def test_the_folder_loads_in_transformers_and_has_the_log_odds_of_the_guard(
    tiny_guard: Callable, tmp_path: Path, family: str, order: str
) -> None:
    guard = tiny_guard(family, order=order)
    found = guard.export(tmp_path / "guard", examples=ITEMS)
    parity = found.agreement.parity
    assert (parity.flips, parity.action_flips, parity.real_items) == (0, 0, 3)
    assert parity.decisions >= 60
    assert found.agreement.log_odds_difference < 1e-4
    assert found.agreement.rendered_equal == found.agreement.prompts >= 50

    # Independently: the card's program on the card's messages, against the guard's own forward pass on the card's item.
    messages, program = card_parts(tmp_path / "guard")
    given = {"folder": str(tmp_path / "guard"), "messages": messages}
    exec(program, given)
    item = Item("card", ("An offer", "Call now and win."), roles={"text": ("title", "body")})
    packed = pack([Decoder(guard.inputs, ()).decode(item)])
    bundle, _ = load_guard_folder(tmp_path / "guard")
    assert given["ids"][0].tolist() == list(batch_prompts(bundle.prompt, packed).ids[0])
    with torch.no_grad():
        true = float(guard.model(collate(packed)).raw_NL[0, 0])
    assert given["log_odds"] == pytest.approx(true, abs=1e-4)
    assert abs(true) > 0.01


def test_the_output_layer_is_complete_and_has_the_trained_answers(
    tiny_guard: Callable, tiny_lm: Callable, tmp_path: Path
) -> None:
    for family in ("llama", "qwen3"):  # untied and tied
        guard = tiny_guard(family)
        guard.export(tmp_path / family)
        written = AutoModelForCausalLM.from_pretrained(tmp_path / family).get_output_embeddings().weight
        started = AutoModelForCausalLM.from_pretrained(tiny_lm(family))
        answers = list(guard.model.pieces.answer_ids)
        others = np.setdiff1d(np.arange(len(written)), answers)
        assert torch.equal(written[others], started.get_output_embeddings().weight[others])
        assert torch.allclose(written[answers], guard.model.answers.weight)
        embeddings = AutoModelForCausalLM.from_pretrained(tmp_path / family).get_input_embeddings().weight
        assert torch.equal(embeddings, started.get_input_embeddings().weight), "the embeddings of the answers stay"


def test_the_folder_is_a_bundle_with_its_files_listed(tiny_guard: Callable, tmp_path: Path) -> None:
    tiny_guard("qwen3").export(tmp_path / "guard")
    bundle, facts = load_guard_folder(tmp_path / "guard")
    assert bundle.labels == ("abuse", "insult", "spam")
    assert facts.answer_texts == ("Yes", "No")
    assert facts.subtrees == ((0, 1), (1,), (2,))
    assert export.GOLDEN_PROMPTS - 1 <= len(facts.golden) <= export.GOLDEN_PROMPTS
    present = set(manifest.list_files(tmp_path / "guard"))
    wanted = {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert wanted | {"chat_template.jinja", "llm.json", "prompt.json", "README.md"} <= present
    modes = {path.stat().st_mode for path in (tmp_path / "guard").iterdir() if path.is_file()}
    assert len(modes) == 1, "the weights can be read by whoever can read the rest"
    with pytest.raises(UserError, match="a guard's folder for LLM servers, without graphs; score with `vigil guard score`"):
        Scorer(tmp_path / "guard")
    card = (tmp_path / "guard" / "README.md").read_text()
    assert all(clause.digest in card and clause.text in card for clause in bundle.prompt.clauses)
    assert all(str(number) in card for number in bundle.prompt.pieces.answer_ids)
    (tmp_path / "guard" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config.json was changed after the export"):
        load_guard_folder(tmp_path / "guard")


def test_a_guard_with_pictures_is_refused_unless_a_text_only_copy_is_asked_for(tiny_guard: Callable, tmp_path: Path) -> None:
    guard = tiny_guard("qwen3", image=True)
    with pytest.raises(UserError, match=r"reads pictures, which a folder of a language model cannot hold; .* with --text-only"):
        guard.export(tmp_path / "guard")
    assert not (tmp_path / "guard").exists()
    found = guard.export(tmp_path / "guard", text_only=True)
    assert found.agreement.parity.flips == 0
    assert "also reads pictures" in (tmp_path / "guard" / "README.md").read_text()
    with pytest.raises(UserError, match="--text-only: the guard reads text alone"):
        tiny_guard("qwen3").export(tmp_path / "other", text_only=True)


def test_a_folder_that_decides_otherwise_is_not_written(
    tiny_guard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = export.WrittenFolder.log_odds
    monkeypatch.setattr(export.WrittenFolder, "log_odds", lambda self, *args: -true(self, *args))
    with pytest.raises(ParityError, match=r"probabilities differ by up to .*decisions differ.*\n.*nothing was written"):
        tiny_guard("qwen3").export(tmp_path / "guard")
    assert not (tmp_path / "guard").exists()


def test_another_type_of_weights_is_written_and_compared(tiny_guard: Callable, tmp_path: Path) -> None:
    found = tiny_guard("llama").export(
        tmp_path / "guard", dtype="bf16", thresholds=dict.fromkeys(("abuse", "insult", "spam"), 1.0)
    )
    assert found.agreement.parity.variant == "bf16"
    assert 1e-6 < found.agreement.parity.max_difference < 0.1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "guard", dtype="auto").dtype == torch.bfloat16


def test_a_base_model_without_chat_template_documents_its_plain_text(tiny_guard: Callable, tmp_path: Path) -> None:
    guard = tiny_guard("llama", chat_template={"kind": "none"})
    found = guard.export(tmp_path / "guard")
    assert found.agreement.parity.flips == 0
    assert found.agreement.prompts == 0
    assert not (tmp_path / "guard" / "chat_template.jinja").exists()
    card = (tmp_path / "guard" / "README.md").read_text()
    plain = re.search(r"```text\n(<s>.*?Answer:\n)\n```", card, re.DOTALL)[1]
    ids = AutoTokenizer.from_pretrained(tmp_path / "guard")(plain, add_special_tokens=False)["input_ids"]
    item = Item("card", ("An offer", "Call now and win."), roles={"text": ("title", "body")})
    packed = pack([Decoder(guard.inputs, ()).decode(item)])
    assert ids == list(batch_prompts(found.bundle.prompt, packed).ids[0])
