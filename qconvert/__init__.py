"""Quantize ONNX models and prove that they still work."""

__version__ = "0.1.0"
