"""`docs/api.md` names everything that the API accepts, refuses or answers with."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import hyperlane.api
from hyperlane.api import unsupported
from hyperlane.api.schema import ChatRequest, CompletionRequest
from hyperlane.config import ApiConfig

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
SOURCES = "".join(path.read_text(encoding="utf-8") for path in Path(hyperlane.api.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("field", sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields}))
def test_every_field_has_a_row(field):
    assert f"\n| `{field}` |" in PAGE


@pytest.mark.parametrize("field", sorted(unsupported._NEUTRAL))
def test_every_refused_field_is_named(field):
    assert re.search(rf"`{field}[`:]", PAGE)


@pytest.mark.parametrize("setting", [field.name for field in fields(ApiConfig) if field.name not in ("host", "port")])
def test_every_setting_has_a_row(setting):
    assert f"\n| `{setting}` |" in PAGE


@pytest.mark.parametrize("code", sorted(set(re.findall(r'code="(\w+)"|, 50[034], "(\w+)"', SOURCES))))
def test_every_error_code_is_named(code):
    assert f"`{code[0] or code[1]}`" in PAGE


def test_every_path_is_named(http):
    for path in http.get("/openapi.json").json()["paths"]:
        assert path.replace("{name}", "{id}") in PAGE
