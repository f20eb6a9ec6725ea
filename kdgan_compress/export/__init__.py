"""Export: write a trained generator as one ONNX file that maps pixels to a score and a decision."""
