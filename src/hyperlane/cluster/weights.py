"""Where a worker's weights come from for one load: its own copy of the model, or the head's tensor server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperlane.cluster.remote_source import RemoteSource
from hyperlane.cluster.trust.trust import Trust
from hyperlane.core import StageSpec
from hyperlane.errors import HyperlaneError, LoadFailed, UnknownModel
from hyperlane.models import layout
from hyperlane.models.digests import DigestCache
from hyperlane.models.source import open_model
from hyperlane.models.weights import TensorSource
from hyperlane.stage.orders import LoadOrder, LoadProgress


def holds_model(fingerprint: str, path: str, digests: DigestCache) -> bool:
    """Whether the file at `path` on this machine is that model."""
    try:
        with open_model(Path(path), digests) as file:
            return file.fingerprint == fingerprint
    except HyperlaneError:
        return False


@contextmanager
def open_weights(
    order: LoadOrder, digests: DigestCache, progress: Callable[[LoadProgress], None], trust: Trust | None = None
) -> Iterator[TensorSource]:
    """The model's tensors, while the block lasts; arrays that were read from a file stay valid after it.

    `trust`: this worker's, if it is reached encrypted; then the head's server is, too.

    Raises:
        LoadFailed: the order names neither a file of that model nor a server.
        TransferError: the server is not there, or serves another model.

    """
    sources, model = order.weights, order.spec.model
    if sources.server is not None:
        names = stage_tensors(order.spec)
        with RemoteSource(sources.server, sources.token, model.fingerprint, trust) as remote:
            infos = [info for name in names if (info := remote.info(name)) is not None]
            total = sum(info.nbytes for info in infos)
            remote.report_to(lambda fetched: progress(LoadProgress("fetching weights", min(fetched, total), total)))
            remote.expect(names)
            yield remote
        return
    try:
        file = open_model(Path(sources.path_hint), digests)
    except UnknownModel as error:
        raise LoadFailed(
            f"this worker has no copy of {model.name}, and was named no server that has: {error}"
        ) from error
    with file:
        if file.fingerprint != model.fingerprint:
            raise LoadFailed(
                f"{sources.path_hint} is another model than {model.name}, or was changed since it was planned"
            )
        yield file


def stage_tensors(spec: StageSpec) -> list[str]:
    """The tensors that a stage reads, in the order in which it does."""
    units = [layout.layer_layout(spec.model, layer) for layer in range(spec.layers.first, spec.layers.last)]
    first = [layout.embedding_layout(spec.model)] if spec.is_first else []
    last = [layout.output_layout(spec.model)] if spec.is_last else []
    return [name for unit in (*first, *units, *last) for name in unit.tensors]
