"""The detector's ONNX graph: trace, rewrite by passes, quantise, add pre- and postprocessing."""
