"""`python -m gma_hf`, the same as `gma-hf`."""

from gma_hf_cli import app


app()
