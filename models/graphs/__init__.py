"""ONNX graphs of modules, exits and heads, in every precision."""
