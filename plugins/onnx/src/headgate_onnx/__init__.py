"""ONNX Runtime models for Headgate, on CPU and CUDA."""
