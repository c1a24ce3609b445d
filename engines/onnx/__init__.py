"""The ONNX Runtime runner: one session per module, exit and head, KV in buffers of its own."""
