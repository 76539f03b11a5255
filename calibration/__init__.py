"""The calibration room: activations → INT8 Q/DQ graphs. Empty until INT8 arrives."""
