"""What holds for the tree as a whole: who may import what, how long things may be, and that documents do not rot."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from hyperlane.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "hyperlane"
GENERATED = SOURCE / "cluster" / "pb"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

HOMES = {
    "onnxruntime": {"stage"},
    "onnx": {"graph", "stage"},
    "grpc": {"cluster"},
    "google": {"cluster"},
    "cryptography": {"cluster"},
    "ssl": {"wire", "cluster"},
    "fastapi": {"api"},
    "starlette": {"api"},
    "pydantic": {"api"},
    "uvicorn": {"api"},
    "typer": {"cli"},
    "rich": {"cli"},
    "prompt_toolkit": {"cli"},
    "gguf": {"models"},
    "tokenizers": {"models"},
    "jinja2": {"models"},
    "huggingface_hub": {"models"},
    "httpx": {"models"},
    "ifaddr": {"cluster"},
    "zeroconf": {"cluster"},
    "platformdirs": {"config"},
    "prometheus_client": {"observe"},
    "tomllib": {"said"},
}
"""Which rooms may import a package; everything else asks that room."""

PURE = (
    "head/scheduler.py",
    "head/sampler.py",
    "head/routing.py",
    "cluster/placement.py",
    *sorted(path.relative_to(SOURCE).as_posix() for path in (SOURCE / "cluster" / "planner").glob("*.py")),
    "cluster/membership.py",
    "cluster/layers/dispatch.py",
    "cluster/layers/meter.py",
    "cluster/layers/refutation.py",
    "store/pieces.py",
    "store/eviction.py",
    "cluster/discovery/advert.py",
    "cluster/discovery/interfaces.py",
    "cluster/doctor/machine_checks.py",
    "cluster/doctor/network_checks.py",
    "cluster/trust/token.py",
    "wire/peer.py",
    "wire/strangers.py",
    "head/turnover.py",
    "api/limits.py",
    "observe/exposition.py",
    "cli/conversation.py",
    "plain.py",
    "summary.py",
)
IMPURE = {"socket", "ssl", "select", "time", "datetime", "asyncio", "threading", "subprocess", "os", "grpc", "random"}
"""Time and randomness are arguments of a decider; sockets, clocks and threads are other modules' business."""

DOCUMENTS = [ROOT / "README.md", ROOT / "DEVELOPMENT.md", *sorted((ROOT / "docs").glob("*.md"))]


def sources(*folders: str) -> list[Path]:
    # benchmarks/.work holds what others wrote
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py") if ".work" not in path.parts)
    return sorted(path for path in found if GENERATED not in path.parents)


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(module: ast.Module) -> Iterator[str]:
    """The top packages that a module imports, wherever in it."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", HOMES)
def test_a_package_is_imported_in_its_own_room_only(package):
    users = {room(path) for path in sources("src/hyperlane") if package in imported(tree(path))}
    assert users <= HOMES[package] | {"testing", "bench"}


def test_only_the_engines_own_modules_import_its_runtime():
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in sources("src/hyperlane/stage")
        if "onnxruntime" in imported(tree(path))
    }
    assert users
    assert all(name.startswith("stage/onnx_") for name in users)


@pytest.mark.parametrize("name", PURE)
def test_a_decider_imports_no_clock_no_socket_and_no_thread(name):
    assert not IMPURE & set(imported(tree(SOURCE / name)))


def test_only_the_configuration_reads_the_environment():
    readers = {
        room(path)
        for path in sources("src/hyperlane")
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Attribute) and node.attr == "getenv")
        or (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ")
        or (isinstance(node, ast.Call) and ast.unparse(node.func) == "os.environ.get")
    }
    assert readers <= {"config"}


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples", "scripts"])
def test_files_and_functions_are_short(folder):
    too_long = []
    for path in sources(folder):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines >= MAX_FILE_LINES:
            too_long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{path.relative_to(ROOT)}: {node.name} has {length} lines")
    assert too_long == []


@pytest.mark.parametrize("path", sources("src/hyperlane"), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_says_what_it_owns(path):
    assert ast.get_docstring(tree(path))


def test_the_base_package_brings_no_runtime_and_each_runtime_extra_brings_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"cpu", "cuda", "webgpu", "test", "dev"}

    def runtimes(requirements: list[str]) -> int:
        return sum(bool(re.match(r"onnxruntime(-gpu)?\b(?!-ep)", requirement)) for requirement in requirements)

    assert runtimes(project["dependencies"]) == 0
    assert [runtimes(extras[name]) for name in ("cpu", "cuda", "webgpu")] == [1, 1, 1]


# --- documents -----------------------------------------------------------------------------------------------


def code_of(document: Path) -> list[str]:
    """Every command or name that a document shows as code: lines of its blocks, and its spans."""
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in [*lines, *spans]]


def documented(pattern: str) -> list[tuple[str, str]]:
    return [
        (document.name, found)
        for document in DOCUMENTS
        for code in code_of(document)
        for found in re.findall(pattern, code)
    ]


def test_every_make_target_in_a_document_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for document, words in documented(r"^make ((?:[a-z-]+(?: |$))+)"):
        assert set(words.split()) <= targets, document


def test_every_command_and_option_in_a_document_exists():
    group = typer.main.get_command(app)
    for document, line in documented(r"(?:^|\| |&& )((?:\.venv/bin/)?hyperlane [a-z]+[^|&#]*)"):
        name, *words = line.split()[1:]
        assert name in group.commands, f"{document}: {line}"
        found = group.commands[name]
        if hasattr(found, "commands"):  # a group: the next word is the command
            assert words, f"{document}: {line}"
            assert words[0] in found.commands, f"{document}: {line}"
            found = found.commands[words[0]]
        options = {option for parameter in found.params for option in parameter.opts} | {"--help", "-h"}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= options, f"{document}: {line}"


def test_every_place_in_the_code_that_a_document_names_exists():
    for document, place in documented(r"^([\w/.]+\.py(?:::[\w.]+)?)$"):
        name, _, symbol = place.partition("::")
        found = [path for path in (ROOT / name, SOURCE / name, ROOT / "src" / name) if path.exists()]
        assert found, f"{document}: {place}"
        names = {getattr(node, "name", "") for node in ast.walk(tree(found[0]))}
        assert not symbol or set(symbol.split(".")) <= names, f"{document}: {place}"
