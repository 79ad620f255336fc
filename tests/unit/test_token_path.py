"""`docs/token-path.md` names code that exists, in every room that a token passes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "token-path.md"
NAMED = re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE.read_text(encoding="utf-8"))


def defined(body):
    """Classes, functions and constants of a module's or a class's body, by name."""
    names = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign):
            names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(("file", "name"), NAMED, ids=["::".join(place) for place in NAMED])
def test_every_step_names_code_that_exists(file, name):
    body = ast.parse((ROOT / "src" / "hyperlane" / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        names = defined(body)
        assert part in names
        body = getattr(names[part], "body", [])


def test_the_page_passes_every_room_in_order():
    rooms = list(dict.fromkeys(file.split("/")[0] for file, _ in NAMED))
    assert [room for room in rooms if room in ("api", "head", "wire", "stage")] == ["api", "head", "wire", "stage"]
    steps = [int(number) for number in re.findall(r"^(\d+)\. ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)]
    assert steps == list(range(1, len(steps) + 1))
