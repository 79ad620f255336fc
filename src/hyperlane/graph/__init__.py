"""The ONNX graph of a stage, built from a model's facts and the forms of its weights. Used by stage alone."""
