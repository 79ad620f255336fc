"""What ONNX Runtime raises."""

from __future__ import annotations

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
"""What ONNX Runtime raises; they share no class of its own."""

NO_MEMORY = ("bad_alloc", "Failed to allocate memory")
"""What ONNX Runtime says of a system that gives no more memory; it has no class for that."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether one of these is about this process's own memory."""
    return any(words in str(error) for words in NO_MEMORY)
