"""The few calls of NVIDIA's runtime that an engine needs beside ONNX Runtime: memory, copies, one stream.

Knows nothing of engines. The library is the one that ONNX Runtime has loaded; nothing is linked.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import threading
import weakref
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")

_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3
_NON_BLOCKING = 1
_NO_TIMING = 2
_SMALLEST = 4096
_ALIGNMENT = 256
_COPIERS = 6
_PART = 8 << 20
"""Bytes that are copied at once; page-locking more takes longer than copying through less."""
_BUS_CHARACTERS = 32

Bytes = npt.NDArray[np.uint8]


class CudaError(RuntimeError):
    """A call of the runtime failed; memory that the card does not have is one of these."""


def load_runtime() -> ctypes.CDLL:
    """The runtime's library.

    Raises:
        CudaError: it is not installed.

    """
    for name in (*LIBRARIES, *_packaged()):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError(f"no CUDA runtime is installed: none of {', '.join(LIBRARIES)} can be loaded")


def _packaged() -> Iterator[str]:
    """The runtime's library in NVIDIA's wheels, where no loader looks."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from (str(path) for name in LIBRARIES for path in sorted(Path(folder).rglob(name)))


def is_installed() -> bool:
    """Whether the runtime's library can be loaded."""
    try:
        load_runtime()
    except CudaError:
        return False
    return True


def device_count() -> int:
    """How many CUDA devices this process may use; 0 where there is no driver or no runtime."""
    try:
        library, found = load_runtime(), ctypes.c_int(0)
    except CudaError:
        return 0
    return found.value if library.cudaGetDeviceCount(ctypes.byref(found)) == 0 else 0


def device_memory(index: int) -> tuple[int, int]:
    """Free and total bytes of a device.

    Raises:
        CudaError: it cannot be asked.

    """
    calls = _Calls(index)
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    calls("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def device_bus(index: int) -> str:
    """Where a device sits in this machine (0000:1b:00.0): the same whichever devices a process may see.

    Raises:
        CudaError: it cannot be asked.

    """
    said = ctypes.create_string_buffer(_BUS_CHARACTERS)
    _Calls(index)("cudaDeviceGetPCIBusId", said, len(said), index)
    return said.value.decode().lower()


class _Calls:
    """Calls that raise what they return, on one device, from any thread: each thread has a device of its own."""

    def __init__(self, index: int) -> None:
        self.library = load_runtime()
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        self.index = index
        self._thread = threading.local()

    def __call__(self, name: str, *arguments: object) -> None:
        if not getattr(self._thread, "is_here", False):
            self._call("cudaSetDevice", self.index)
            self._thread.is_here = True
        self._call(name, *arguments)

    def free_host(self, host: ctypes.c_void_p) -> None:
        """Free page-locked memory; whoever collects garbage calls this, and no error is of use to it."""
        with contextlib.suppress(CudaError):
            self("cudaFreeHost", host)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            said = self.library.cudaGetErrorString(code).decode()
            self.library.cudaGetLastError()  # else whoever asks for it next, as kernels do, takes it for their own
            raise CudaError(f"{name} on device {self.index}: {said}")


@dataclass(frozen=True, slots=True)
class _Twin:
    """Page-locked bytes at `host` and as many on the device."""

    host: int
    device: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CudaEntries:
    """Implements `Entries` in the device's memory."""

    memory: CudaMemory
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    provider: str = "cuda"

    @property
    def nbytes(self) -> int:
        """See `Entries`."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def address(self, slot: int) -> int:
        """See `Entries`."""
        return self.pointer + slot * (self.nbytes // self.shape[0])

    def copy(self, source: int, destination: int, count: int) -> None:
        """See `Entries`; the copy is done before the next run."""
        _, heads, positions, size = self.shape
        entry = size * self.dtype.itemsize
        self.memory.copy_rows(self.address(source), self.address(destination), positions * entry, count * entry, heads)


class CudaMemory:
    """Implements `Memory`: arrays in page-locked memory, each with a twin on the device; copies on one stream."""

    provider = "cuda"
    captures = True
    copies = True
    takes_when_bound = False

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._calls = _Calls(index)
        stream = ctypes.c_void_p(0)
        self._calls("cudaStreamCreateWithFlags", ctypes.byref(stream), _NON_BLOCKING)
        self._stream = stream
        self._owned: list[int] = []
        self._bases: list[int] = []
        self._twins: list[_Twin] = []
        self._free: defaultdict[int, list[Bytes]] = defaultdict(list)

    def most_tokens(self, window: int) -> int:
        """See `Memory`."""
        return 0

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream.value or 0)

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `Memory`."""
        kind = np.dtype(dtype)
        nbytes = max(1, int(np.prod(shape))) * kind.itemsize
        host = ctypes.c_void_p(0)
        self._calls("cudaHostAlloc", ctypes.byref(host), ctypes.c_size_t(nbytes), 0)
        place = (ctypes.c_uint8 * nbytes).from_address(host.value or 0)
        # Whoever still holds a view of it keeps it; the device's half goes with the engine.
        weakref.finalize(place, self._calls.free_host, host).atexit = False
        ctypes.memset(host, 0, nbytes)
        twin = _Twin(host.value or 0, self._allocate(nbytes), nbytes)
        at = bisect_right(self._bases, twin.host)
        self._bases.insert(at, twin.host)
        self._twins.insert(at, twin)
        values: npt.NDArray[Any] = np.frombuffer(memoryview(place), np.uint8).view(kind)
        return values[: int(np.prod(shape))].reshape(tuple(shape))

    def copy_in(self, arrays: Sequence[npt.NDArray[Any]]) -> list[int]:
        """Copies of contiguous arrays on the device; where each lies until `close`.

        Through page-locked memory, by several threads: a copy from memory that is not takes several times as long.

        Raises:
            CudaError: the device has no room for them.

        """
        begins = [0, *accumulate(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)]
        base = self._take(begins[-1])
        places = [base + begin for begin in begins[:-1]]
        parts = [
            (place + start, array.reshape(-1).view(np.uint8)[start : start + _PART])
            for place, array in zip(places, arrays, strict=True)
            for start in range(0, array.nbytes, _PART)
        ]
        with ThreadPoolExecutor(_COPIERS, "copy") as pool:
            for done in [pool.submit(self._copy_parts, parts[first::_COPIERS]) for first in range(_COPIERS)]:
                done.result()
        return places

    def _copy_parts(self, parts: Sequence[tuple[int, Bytes]]) -> None:
        """One thread's, in turns through two buffers: one is filled while the other is copied."""
        calls, stream, host = _Calls(self.index), ctypes.c_void_p(0), ctypes.c_void_p(0)
        calls("cudaStreamCreateWithFlags", ctypes.byref(stream), _NON_BLOCKING)
        calls("cudaHostAlloc", ctypes.byref(host), ctypes.c_size_t(2 * _PART), 0)
        try:
            buffers = np.ctypeslib.as_array((ctypes.c_uint8 * (2 * _PART)).from_address(host.value or 0)).reshape(2, -1)
            done = [ctypes.c_void_p(0), ctypes.c_void_p(0)]
            for event in done:
                calls("cudaEventCreateWithFlags", ctypes.byref(event), _NO_TIMING)
            for index, (place, source) in enumerate(parts):
                event, buffer = done[index % 2], buffers[index % 2]
                calls("cudaEventSynchronize", event)
                np.copyto(buffer[: source.nbytes], source)
                ends = (ctypes.c_void_p(place), ctypes.c_void_p(buffer.ctypes.data), ctypes.c_size_t(source.nbytes))
                calls("cudaMemcpyAsync", *ends, _TO_DEVICE, stream)
                calls("cudaEventRecord", event, stream)
            calls("cudaStreamSynchronize", stream)
            for event in done:
                calls("cudaEventDestroy", event)
        finally:
            calls("cudaFreeHost", host)
            calls("cudaStreamDestroy", stream)

    def lend(self, nbytes: int) -> Bytes:
        """See `Memory`."""
        size = max(_SMALLEST, 1 << (nbytes - 1).bit_length())
        block: Bytes = self._free[size].pop() if self._free[size] else self.array((size,), np.uint8)
        return block

    def give_back(self, block: Bytes) -> None:
        """See `Memory`."""
        self._free[block.nbytes].append(block)

    def entries(self, shape: Sequence[int], dtype: npt.DTypeLike) -> CudaEntries:
        """See `Memory`."""
        kind = np.dtype(dtype)
        return CudaEntries(self, self._allocate(int(np.prod(shape)) * kind.itemsize), tuple(shape), kind)

    def address(self, array: npt.NDArray[Any]) -> int:
        """See `Memory`."""
        host = array.ctypes.data
        twin = self._twins[bisect_right(self._bases, host) - 1]
        assert twin.host <= host <= twin.host + twin.nbytes
        return twin.device + host - twin.host

    def push(self, array: npt.NDArray[Any]) -> None:
        """See `Memory`."""
        if array.nbytes:
            self._copy(self.address(array), array.ctypes.data, array.nbytes, _TO_DEVICE)

    def pull(self, array: npt.NDArray[Any]) -> None:
        """See `Memory`."""
        if array.nbytes:
            self._copy(array.ctypes.data, self.address(array), array.nbytes, _TO_HOST)

    def copy_rows(self, source: int, destination: int, pitch: int, width: int, count: int) -> None:
        """Copy `count` rows of `width` bytes that lie `pitch` bytes apart, within the device."""
        if width:
            size, rows = ctypes.c_size_t, ctypes.c_size_t(count)
            ends = (ctypes.c_void_p(destination), size(pitch), ctypes.c_void_p(source), size(pitch))
            self._calls("cudaMemcpy2DAsync", *ends, size(width), rows, _ON_DEVICE, self._stream)

    def wait(self) -> None:
        """See `Memory`."""
        self._calls("cudaStreamSynchronize", self._stream)

    def room(self) -> tuple[int, int]:
        """See `Memory`."""
        return device_memory(self.index)

    def close(self) -> None:
        """See `Memory`."""
        owned, self._owned = self._owned, []
        if owned:
            self.wait()
        for pointer in owned:
            self._calls("cudaFree", ctypes.c_void_p(pointer))
        self._bases.clear()
        self._twins.clear()
        self._free.clear()

    def _allocate(self, nbytes: int) -> int:
        """Zeroed device memory."""
        pointer = self._take(nbytes)
        self._calls("cudaMemsetAsync", ctypes.c_void_p(pointer), 0, ctypes.c_size_t(nbytes), self._stream)
        return pointer

    def _take(self, nbytes: int) -> int:
        """Device memory as it is."""
        pointer = ctypes.c_void_p(0)
        self._calls("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, nbytes)))
        self._owned.append(pointer.value or 0)
        return pointer.value or 0

    def _copy(self, to: int, source: int, nbytes: int, kind: int) -> None:
        places = (ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(nbytes))
        self._calls("cudaMemcpyAsync", *places, kind, self._stream)
