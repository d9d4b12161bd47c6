"""What the analyses answer: pydantic models, one docstring per number, no torch.

They are what `--json` prints and what the tables, pictures and pages are drawn from.
"""
