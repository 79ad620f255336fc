"""A stage's tensors as a `TensorSource`: read from the cache on disk, into which they are fetched by need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hyperlane.cluster.layers.fetcher import LayerFetcher
from hyperlane.cluster.layers.meter import Moved
from hyperlane.models.ranges import TensorPlace
from hyperlane.models.weights import TensorInfo
from hyperlane.store.tensor_store import map_tensor


class StoredSource:
    """Is an `ExpectingSource`. What `report` raises ends a read."""

    def __init__(
        self,
        places: Mapping[str, TensorPlace],
        fetcher: LayerFetcher,
        report: Callable[[Moved], None],
        make_room: Callable[[int], None],
    ) -> None:
        """`make_room`: sees that so many bytes can be kept."""
        self._places = places
        self._fetcher = fetcher
        self._report = report
        self._make_room = make_room

    def info(self, name: str) -> TensorInfo | None:
        """As `TensorSource.info`."""
        place = self._places.get(name)
        return None if place is None else place.info

    def names(self) -> Sequence[str]:
        """As `TensorSource.names`, of the stage's tensors."""
        return tuple(self._places)

    def expect(self, names: Sequence[str]) -> None:
        """As `ExpectingSource.expect`.

        Raises:
            LoadFailed: the disk has no room for them.

        """
        wanted = [name for name in names if name in self._places]
        self._make_room(self._fetcher.missing_bytes(wanted))
        self._fetcher.expect(wanted)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """As `TensorSource.read`, once the tensor has arrived.

        Raises:
            TransferError: it cannot be had.
            LoadFailed: it cannot be kept.

        """
        return map_tensor(self._fetcher.wait(name, self._report))
