"""The export room: checkpoint → PyTorch step module → ONNX bundle. The only room, with calibration, that knows torch."""
