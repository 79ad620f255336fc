"""Whatever JSON comes, the answer is an answer or an error that is the client's; never a failure of ours."""

from __future__ import annotations

import json
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperlane.api import unsupported
from hyperlane.api.schema import ChatRequest, CompletionRequest

FUZZ = int(os.environ.get("HYPERLANE_TEST_FUZZ", "1"))
"""`make fuzz` tries so many times as much."""

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 300),
    st.integers(),
    st.floats(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "toy", "user", "text", "auto", "7"]),
    st.text(max_size=20),
)
KEYS = st.one_of(
    st.sampled_from(["role", "content", "type", "text", "include_usage", "tool_calls", "1"]), st.text(max_size=5)
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *unsupported._NEUTRAL})
SOUND = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4).map(lambda wild: {**SOUND, **wild})


@settings(
    max_examples=100 * FUZZ,
    deadline=None,
    derandomize=FUZZ == 1,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=BODIES | VALUES, path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
def test_wild_bodies_are_answered_or_refused_with_a_reason(http, body, path):
    content = json.dumps(body).encode()
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), content
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"]
        assert error["code"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
