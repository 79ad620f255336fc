"""The API against its own OpenAPI document: requests made of it, valid and not, and every answer held against it."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from hyperlane.api import create_app
from hyperlane.config import ApiConfig
from hyperlane.testing.fake_generator import FakeGenerator

FUZZ = int(os.environ.get("HYPERLANE_TEST_FUZZ", "1"))
"""`make fuzz` tries so many times as much."""

APP = create_app(FakeGenerator(), ApiConfig(hosts=("*",)))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}
# What the document allows may still be refused: 2.0 as an integer, a field that is not supported, too long a prompt.
SOUND = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
NOT_ASKED = ["positive_data_acceptance"]


def test_the_document_is_about_every_route():
    paths = {route.path.replace(":path", "") for route in APP.routes if getattr(route, "include_in_schema", False)}
    assert {label.split()[1] for label in OPERATIONS} == paths


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_one_that_the_document_describes(label):
    operation, seen = OPERATIONS[label], Counter()
    modes = [operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]

    @settings(
        max_examples=(25 if label.startswith("POST") else 5) * FUZZ,
        deadline=None,
        database=None,
        derandomize=FUZZ == 1,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(modes if operation.body else modes[:1]), kept=st.just(set()) | st.just(set(SOUND)))
    def ask(case, kept):
        if isinstance(case.body, dict):  # with what nearly every other request fails of already
            case.body.update({name: sound for name, sound in SOUND.items() if name in kept & case.body.keys()})
        answer = case.call()
        seen[answer.status_code] += 1
        mended = ["negative_data_rejection"] if kept else []
        case.validate_response(answer, excluded_checks=[CHECKS.get_one(name) for name in (*NOT_ASKED, *mended)])

    ask()
    assert seen[200] or "{name}" in label
    assert not label.startswith("POST") or seen[400]
