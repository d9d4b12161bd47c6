"""Look inside a transformer: capture its activations, then ask questions of them."""

__version__ = "0.1.0"
