"""The shipped checkpoints, the text sample, and a few training steps."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


ROOT = Path(__file__).parents[2]


def pytest_sessionfinish(session):
    """With `ALL_LIBRARIES` set, as by `make test-libraries`, a skipped test is a failure."""
    skipped = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped")
    if os.environ.get("ALL_LIBRARIES") and skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Folder of the shipped causal checkpoint, which reads characters."""
    return ROOT / "model_cards" / "gma-shakespeare"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the shipped sentence encoder."""
    return ROOT / "model_cards" / "gma-minilm-l6"


@pytest.fixture(scope="session")
def greedy(shakespeare):
    """`greedy(prompt, max_new_tokens)`: what the checkpoint writes after a text."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(shakespeare), AutoTokenizer.from_pretrained(shakespeare)

    def write(prompt: str, max_new_tokens: int) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return write


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
