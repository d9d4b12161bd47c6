"""Capture: the one engine that reads activations out of a running model."""
