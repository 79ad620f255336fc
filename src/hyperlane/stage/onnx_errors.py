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
