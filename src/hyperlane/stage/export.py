"""A stage as a plain ONNX model: a graph, its weights as external data, and what says how to run it.

ONNX Runtime alone runs it; nothing in the folder is a format of ours. Knows no engine, and needs no runtime.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import TensorProto

from hyperlane.core import StageSpec
from hyperlane.errors import ConfigError
from hyperlane.graph.forms import MatrixForm
from hyperlane.models.weights import TensorSource
from hyperlane.stage.export_notes import MANIFEST, MODEL, README, WEIGHTS, describe, readme
from hyperlane.stage.initialisers import beside
from hyperlane.stage.loading import Assembly, ReportProgress, usable
from hyperlane.stage.numbers import TypedArray, in_types
from hyperlane.stage.options import BlockOffsets, EngineOptions
from hyperlane.store.ready_file import ALIGNMENT, Span

FILES = frozenset({MODEL, WEIGHTS, MANIFEST, README})
"""What an exported folder holds."""


def export_stage(
    spec: StageSpec,
    source: TensorSource,
    folder: Path,
    device: str = "cpu",
    *,
    force: bool = False,
    progress: ReportProgress = lambda report: None,
) -> None:
    """Write a stage into a folder, whole or not at all.

    Args:
        spec: the stage.
        source: where its tensors come from.
        folder: where to; may be there if it is empty.
        device: the provider whose operators and types the graph takes.
        force: replace an earlier export.
        progress: told how far it is; what it raises ends the export, with nothing left behind.

    Raises:
        MalformedModel, UnsupportedModel: as the source and the conversion do.
        ConfigError: the folder holds something else than what may be replaced, or cannot be written.

    """
    check_target(folder, force=force)
    # Offsets are folded into weights that an engine has packed; a plain model holds them as a matrix: as exact.
    options = usable(EngineOptions(device=device, offsets=BlockOffsets.EXACT))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(Assembly(spec, source, options, progress), work)
            _publish(work, folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"the stage cannot be written to {folder}: {error.strerror or error}; free some space, or choose another "
            "place with --output"
        ) from error


def check_target(folder: Path, *, force: bool) -> None:
    """Refuse a folder that would lose something.

    Raises:
        ConfigError: it is a file, holds something else than an export, or an export that is not to be replaced.

    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give another place with --output")
    held = {entry.name for entry in folder.iterdir()}
    others = held - FILES
    if others:
        raise ConfigError(
            f"{folder} holds other things than an exported stage ('{min(others)}'); give another place with --output"
        )
    if held and not force:
        raise ConfigError(f"{folder} holds an exported stage already; --force replaces it")


def _write(order: Assembly, folder: Path) -> None:
    forms: dict[str, tuple[MatrixForm, ...]] = {}
    initialisers: list[TensorProto] = []
    with (folder / WEIGHTS).open("wb") as file:
        for layout in order.counted():
            unit = order.read(layout)
            forms |= unit.forms
            arrays = in_types(unit.arrays, order.numbers)
            initialisers += [beside(name, array, WEIGHTS, span) for name, array, span in _append(file, arrays)]
        _sync(file)
    model = order.graph(forms, initialisers, order.read_gains(Assembly.read))
    notes = describe(order.spec, model, order.options.device)
    for name, content in {MODEL: model, MANIFEST: notes.json(), README: readme(notes)}.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            _sync(file)


def _append(file: BinaryIO, arrays: dict[str, TypedArray]) -> Iterator[tuple[str, TypedArray, Span]]:
    """Each array at the next aligned place, so that it can be mapped."""
    for name, array in arrays.items():
        file.write(bytes(-file.tell() % ALIGNMENT))
        span = Span(file.tell(), array.nbytes)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        yield name, array, span


def _publish(work: Path, folder: Path) -> None:
    """Give the folder its name; an earlier one is deleted only then."""
    work.chmod(0o755)
    away = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if folder.exists():
            os.rename(folder, away / "before")
        os.rename(work, folder)
    finally:
        shutil.rmtree(away, ignore_errors=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
