"""The calibration room: activations of real streams in, quantised bundles with their measured quality out."""
