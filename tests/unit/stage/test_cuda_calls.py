"""Calls of NVIDIA's runtime reach the device that is meant, from whichever thread they come."""

from __future__ import annotations

import threading

import pytest

from hyperlane.stage import cuda


class Library:
    """A runtime with two devices that notes on which one a thread's calls land."""

    def __init__(self) -> None:
        self._current = threading.local()
        self.landed: list[tuple[str, int]] = []
        self.cudaGetErrorString = lambda code: b"made up"

    def __getattr__(self, name: str):
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: object) -> int:
            if name == "cudaSetDevice":
                self._current.index = arguments[0]
                return 0 if arguments[0] in (0, 1) else 101
            if name == "cudaDeviceGetPCIBusId":
                arguments[0].value = f"0000:{0x1B + arguments[2]:02X}:00.0".encode()
            self.landed.append((name, getattr(self._current, "index", 0)))
            return 0

        return call


@pytest.fixture
def library(monkeypatch) -> Library:
    made = Library()
    monkeypatch.setattr(cuda, "load_runtime", lambda: made)
    return made


def test_every_thread_works_on_the_memorys_own_device(library):
    memory = cuda.CudaMemory(1)
    memory.entries((2, 1, 4, 8), "float16")
    thread = threading.Thread(target=memory.entries, args=((2, 1, 4, 8), "float16"))
    thread.start()
    thread.join()
    assert {index for _, index in library.landed} == {1}
    assert [name for name, _ in library.landed].count("cudaMalloc") == 2


def test_page_locked_memory_is_freed_on_its_device_by_whoever_collects_it(library):
    calls = cuda._Calls(1)
    thread = threading.Thread(target=calls.free_host, args=(None,))
    thread.start()
    thread.join()
    assert library.landed[-1] == ("cudaFreeHost", 1)


def test_a_device_is_told_apart_by_where_it_sits(library):
    assert [cuda.device_bus(index) for index in (0, 1)] == ["0000:1b:00.0", "0000:1c:00.0"]


def test_a_failed_call_leaves_no_error_behind_for_those_who_ask_next(library):
    memory = cuda.CudaMemory(0)
    library.cudaMalloc = lambda *arguments: 2
    with pytest.raises(cuda.CudaError, match="cudaMalloc on device 0: made up"):
        memory.entries((2, 1, 4, 8), "float16")
    assert library.landed[-1] == ("cudaGetLastError", 0)


def test_a_device_that_is_not_there_is_an_error_with_its_name(library):
    with pytest.raises(cuda.CudaError, match="cudaSetDevice on device 7: made up"):
        cuda.CudaMemory(7)
