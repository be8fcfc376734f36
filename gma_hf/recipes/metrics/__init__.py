"""Metric modules of `evaluate` that need no Hub: `evaluate.load(FOLDER)`."""

from pathlib import Path


ACCURACY, TOKEN_LOSS = (str(Path(__file__).parent / name) for name in ("accuracy", "token_loss"))
