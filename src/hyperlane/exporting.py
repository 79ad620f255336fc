"""`hyperlane export`: from configuration to a stage on disk. Knows which parts play which role, as `node` does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hyperlane.cluster.report import Progress, Report, silent
from hyperlane.cluster.wanted import context_of
from hyperlane.config import ServeConfig
from hyperlane.core import Epoch, HeadId, LayerRange, StageSpec
from hyperlane.errors import ConfigError
from hyperlane.models.digests import DigestCache
from hyperlane.models.resolve import Library, name_of, resolve
from hyperlane.models.source import facts_of, open_model

PROVIDERS = ("cpu", "cuda", "webgpu")
"""Devices whose graphs can be written."""

_RANGE = re.compile(r"(\d+):(\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def export_model(
    config: ServeConfig,
    layers: str | None = None,
    output: Path | None = None,
    *,
    force: bool = False,
    report: Report = silent,
) -> Path:
    """Write some layers of a model as a plain ONNX model, and return the folder.

    Args:
        config: names the model, and how it is to be run: `context`, `weights`, `device` (`auto` is the CPU).
        layers: "a:b" for layers a to b − 1; None for all. The first one
            brings the embedding, the last one the projection.
        output: the folder; None: one of the model's name and these layers, here.
        force: replace an earlier export.
        report: told how it goes.

    Raises:
        UsageError: an unknown model, an impossible setting, or a folder that must not be replaced.
        ModelError: the model cannot be used.
        TransferError: it cannot be had.

    """
    from hyperlane.stage.export import check_target, export_stage

    device = "cpu" if config.device == "auto" else config.device
    if device not in PROVIDERS:
        raise ConfigError(f"--device {device}: stages are written for {', '.join(PROVIDERS)}")
    digests = DigestCache(config.paths.digests)
    library = Library(config.paths.models, config.offline, digests)
    path = resolve(config.model, library, lambda done, total: report(Progress("export", "downloading", done, total)))
    name = name_of(config.model, path)
    with open_model(path, digests) as model:
        facts = replace(facts_of(model, config.weights), name=name)
        chosen = layer_range(layers, facts.layers)
        folder = output or Path(f"{_UNSAFE.sub('-', name)}.layers-{chosen.first}-{chosen.last}")
        check_target(folder, force=force)
        first, last = chosen.first == 0, chosen.last == facts.layers
        spec = StageSpec(
            model=facts,
            epoch=Epoch(HeadId(bytes(16)), 0),
            index=0 if first else 1,
            stages=1 + (not first) + (not last),
            layers=chosen,
            slots=config.slots,
            context=context_of(config.context, facts),
            threads=1,
            max_step_tokens=config.step_tokens,
        )
        export_stage(
            spec,
            model,
            folder,
            device,
            force=force,
            progress=lambda load: report(Progress("export", load.phase, load.done, load.total)),
        )
    return folder


def layer_range(text: str | None, layers: int) -> LayerRange:
    """Layers a to b − 1 from "a:b"; all of them from None.

    Raises:
        ConfigError: it is no such text, or there are no such layers.

    """
    if text is None:
        return LayerRange(0, layers)
    found = _RANGE.fullmatch(text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not first < last <= layers:
        raise ConfigError(f"--layers {text}: give a:b for layers a to b - 1, of 0:{layers}")
    return LayerRange(first, last)
