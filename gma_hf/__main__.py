"""`python -m gma_hf`, the same as `gma-hf`."""

from .cli import app


app(prog_name="gma-hf")
