"""Responses of LLM servers as log odds: all shapes, and bounds where an answer is missing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_serving.llm_server.client import MalformedResponse
from vigil_serving.llm_server.protocols import (
    FORMS,
    Answers,
    Form,
    NextTokens,
    log_odds,
    read_model,
    read_response,
    request_body,
)

ANSWERS = Answers((7, 3), ("Yes", "No"))
# As documented: vLLM's serving.py, llama.cpp's server-task.cpp and README, OpenAI's reference, TGI's lib.rs.
VLLM = {
    "choices": [
        {"text": "Yes", "logprobs": {"tokens": ["token_id:7"], "top_logprobs": [{"token_id:7": -0.1, "token_id:3": -2.5}]}}
    ]
}
LLAMA_CPP = {
    "choices": [
        {
            "text": "Yes",
            "logprobs": {
                "content": [
                    {
                        "id": 7,
                        "token": "Yes",
                        "bytes": [89, 101, 115],
                        "logprob": -0.1,
                        "top_logprobs": [
                            {"id": 7, "token": "Yes", "bytes": [], "logprob": -0.1},
                            {"id": 3, "token": "No", "bytes": [], "logprob": -2.5},
                        ],
                    }
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 12},
}
OPENAI = {
    "choices": [{"text": "Yes", "logprobs": {"tokens": ["Yes"], "top_logprobs": [{"Yes": -0.1, "No": -2.5, " Yes": -3.0}]}}]
}
TGI = {
    "generated_text": "Yes",
    "details": {
        "finish_reason": "length",
        "prefill": [{"id": 1, "text": "<s>", "logprob": None}, {"id": 5, "text": "a", "logprob": -4.0}],
        "tokens": [{"id": 7, "text": "Yes", "logprob": -0.1, "special": False}],
        "top_tokens": [
            [
                {"id": 7, "text": "Yes", "logprob": -0.1, "special": False},
                {"id": 3, "text": "No", "logprob": -2.5, "special": False},
            ]
        ],
    },
}


@pytest.mark.parametrize(
    ("api", "body"), [("completions", VLLM), ("completions", LLAMA_CPP), ("completions", OPENAI), ("tgi", TGI), ("tgi", [TGI])]
)
def test_read_response_reads_every_documented_shape(api, body) -> None:
    found = read_response(api, body, ANSWERS)
    assert found.answers == (-0.1, -2.5)
    assert log_odds(found) == (2.4, False)


def test_read_response_reads_the_length_of_the_prompt() -> None:
    assert read_response("completions", LLAMA_CPP, ANSWERS).prompt_tokens == 12
    assert read_response("completions", VLLM, ANSWERS).prompt_tokens is None
    assert read_response("tgi", TGI, ANSWERS).prompt_tokens == 2


def test_read_response_takes_a_token_by_its_id_before_its_text() -> None:
    named = {"choices": [{"logprobs": {"top_logprobs": [{"token_id:7": -1.0, "Yes": -5.0, "No": -2.0}]}}]}
    assert read_response("completions", named, ANSWERS).answers == (-1.0, -2.0)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        "text",
        {"choices": []},
        {"choices": [{"text": "Yes", "logprobs": None}]},
        {"choices": [{"logprobs": {"top_logprobs": []}}]},
        {"choices": [{"logprobs": {"top_logprobs": [{}]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [None]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [{"Yes": "high"}]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [{"Yes": 0.7}]}}]},
        {"choices": [{"logprobs": {"content": [{"token": "Yes"}]}}]},
    ],
)
def test_read_response_refuses_what_has_no_log_probabilities(body) -> None:
    for api in FORMS:
        with pytest.raises(MalformedResponse, match="no log probabilities of the next token"):
            read_response(api, body, ANSWERS)


@given(
    logits=st.lists(st.floats(-20, 20), min_size=9, max_size=40),
    top=st.integers(1, 40),
)
def test_log_odds_bounds_the_true_log_odds_on_its_side_of_0(logits, top) -> None:
    logprobs = np.array(logits) - np.logaddexp.reduce(logits)
    listed = np.argsort(-logprobs, kind="stable")[:top].tolist()
    yes, no = (float(logprobs[n]) if n in listed else None for n in ANSWERS.ids)
    found = log_odds(NextTokens((yes, no), tuple(map(float, logprobs[listed])), None))
    true = float(logprobs[7] - logprobs[3])
    if yes is not None and no is not None:
        assert found is not None
        assert not found.bounded
        assert found.value == pytest.approx(true)
    elif yes is None and no is None:
        assert found is None
    else:
        assert found is not None
        assert found.bounded
        assert (found.value >= 0) == (yes is not None) or found.value == 0
        assert abs(found.value) <= abs(true) + 1e-6
        assert found.value * true >= -1e-9


def test_log_odds_uses_what_is_left_of_the_probability_where_that_is_less() -> None:
    nearly_all = math.log(0.999)
    found = log_odds(NextTokens((nearly_all, None), (nearly_all,), None))
    assert found is not None
    assert found.value == pytest.approx(nearly_all - math.log(0.001), rel=1e-6)


def test_request_body_of_each_form() -> None:
    first, second, third, fourth = FORMS["completions"]
    ids = (1, 5, 9)
    full = request_body("completions", first, ids, ANSWERS, model="m", top=20)
    assert full["prompt"] == [1, 5, 9]
    assert full["logprob_token_ids"] == [7, 3]
    assert "add_special_tokens" not in full
    plain = {"model": "m", "max_tokens": 1, "temperature": 0, "logprobs": 20}
    assert request_body("completions", second, ids, ANSWERS, model="m", top=20) == {**plain, "prompt": [1, 5, 9]}
    assert request_body("completions", third, "a", ANSWERS, model="m", top=20)["add_special_tokens"] is False
    assert request_body("completions", fourth, "a", ANSWERS, model="m", top=20) == {**plain, "prompt": "a"}
    body = request_body("tgi", Form(False, False), "a", ANSWERS, model=None, top=5, prefill=True)
    assert body["inputs"] == "a"
    assert body["parameters"]["decoder_input_details"] is True


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"data": []}, "does not list its model"),
        ({}, "does not list its model"),
        (None, "does not list its model"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, r"serves 2 models \(a, b\); name the model with --model"),
    ],
)
def test_read_model_needs_exactly_one(body, message) -> None:
    with pytest.raises(UserError, match=message):
        read_model(body, "http://host")
    assert read_model({"data": [{"id": "a"}]}, "http://host") == "a"
