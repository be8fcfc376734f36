"""The shipped checkpoints, the text sample, and a few training steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Folder of the shipped causal checkpoint, which reads characters."""
    return ROOT / "model_cards" / "gma-shakespeare"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the shipped sentence encoder."""
    return ROOT / "model_cards" / "gma-minilm-l6"


@pytest.fixture(scope="session")
def text() -> str:
    """The text sample."""
    return (ROOT / "tests" / "data" / "shakespeare.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def train():
    """`train(model, loss, steps=5)`: the losses of a few steps of Adam on what is to be trained."""

    def run(model: torch.nn.Module, loss: Callable[[], torch.Tensor], steps: int = 5) -> list[float]:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        return losses

    return run
