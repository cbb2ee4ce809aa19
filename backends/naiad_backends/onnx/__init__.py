"""The `onnxruntime` backend: ONNX models on CPU, CUDA, TensorRT and OpenVINO."""
