"""Where the golden files are; `tests/data/2048former/README.md` says where they come from."""

from pathlib import Path

GOLDEN = Path(__file__).parent / "data" / "2048former"
MODELS = GOLDEN / "models"
DATA = GOLDEN / "data"
DUMPS = GOLDEN / "dumps"

LENS_MODELS = Path(__file__).parent / "data" / "logit-lens"
"""Tiny language models with the values of their logit lens; see the README there."""
