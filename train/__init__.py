"""Training: photographs, degradation synthesis, data, metrics."""
