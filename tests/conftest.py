"""What the tests of the model family share: tiny configurations, models without a zero in them, and a comparison."""

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers

from gma_hf import GMAConfig


# A suite that a shell runs in its background ignores Ctrl-C, and so would the programs that tests interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


ADDITIONS = {"conv_kernel_size": 4, "forget_gate": True, "normalize_routing": True, "output_gate": True}
ADDITIONS |= {"read_exponent": "learned"}
HYBRID = ["gma", "full_attention", "gma"]
TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_components": 7,
    "routing_dim": 10,
    "chunk_size": 8,
}
CONFIGS = {
    "causal": (GMAConfig.gpt2_style, {}),
    "causal_additions": (GMAConfig.gpt2_style, ADDITIONS),
    "causal_hybrid": (
        GMAConfig.gpt2_style,
        {"num_hidden_layers": 3, "layer_types": HYBRID, "read_exponent": 1.0},
    ),
    "causal_hybrid_additions": (
        GMAConfig.gpt2_style,
        {"num_hidden_layers": 3, "layer_types": ["full_attention", "gma", "gma"], **ADDITIONS},
    ),
    "bidirectional": (GMAConfig.bert_style, {}),
    "bidirectional_conv": (
        GMAConfig.bert_style,
        {"conv_kernel_size": 3, "normalize_routing": True, "read_exponent": 0.37},
    ),
    "bidirectional_hybrid": (
        GMAConfig.bert_style,
        {"num_hidden_layers": 3, "layer_types": HYBRID, "embedding_size": 16},
    ),
}


@pytest.fixture(scope="session")
def newest_transformers():
    """For a test of what Transformers itself does, which may differ in other releases than we develop with."""
    if not IS_DEVELOPED_WITH:
        pytest.skip("of Transformers itself, as in the release that we develop with")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


PINS = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
IS_DEVELOPED_WITH = f"transformers=={transformers.__version__}" in PINS
OF_ITS_OWN = (
    # Transformers 5.23 calls its own `generate` so for an assistant, whatever the model
    "Passing `generation_config` together with generation-related arguments=(",
    # torch 2.13, when torchao 0.18 is imported
    "Calling register_constant() on Enum subclasses is deprecated",
)


def is_deprecation(message: str) -> bool:
    """Whether it says that something is deprecated which is not up to the library that says so."""
    return bool(re.search("deprecated|will be removed in", message)) and not any(own in message for own in OF_ITS_OWN)


def pytest_configure(config):
    """Only on the Transformers that we develop with is a deprecation an error."""
    if not IS_DEVELOPED_WITH:
        for category in ("DeprecationWarning", "FutureWarning"):
            config.addinivalue_line("filterwarnings", f"default::{category}")


class _DeprecationsAreErrors(logging.Handler):
    """Transformers says what is deprecated by its logger as well, which the warning filters of pytest do not see."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if is_deprecation(message) and IS_DEVELOPED_WITH:
            raise DeprecationWarning(message)


@pytest.fixture(scope="session", autouse=True)
def _deprecations_are_errors():
    logger, handler = logging.getLogger("transformers"), _DeprecationsAreErrors()
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def deprecations():
    """`deprecations(text)`: the lines of what a process has printed that say that something is deprecated."""
    return lambda text: [line for line in text.splitlines() if is_deprecation(line)]


@pytest.fixture(scope="session")
def run_python(deprecations):
    """
    `run_python(*arguments, env={}, **options)`: a Python process that has ended, with `env` beside our environment. It
    must end well and say of nothing that it is deprecated.
    """

    def run(*arguments, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        choices = {"capture_output": True, "text": True, "timeout": 500, "env": environment, **options}
        done = subprocess.run([sys.executable, *map(str, arguments)], **choices)
        assert done.returncode == 0, done.stderr[-3000:]
        assert deprecations(done.stderr) == []
        return done

    return run


@pytest.fixture(scope="session")
def make_config():
    """`make_config(name, **overrides)`: a tiny configuration, by its name in `CONFIGS`."""

    def make(name: str, **overrides) -> GMAConfig:
        style, choices = CONFIGS[name]
        return style(**{**TINY, **choices, **overrides})

    return make


@pytest.fixture(scope="session")
def make_model():
    """
    `make_model(model_class, config, seed=0)`: a model in which every parameter is random. A fresh model will not do:
    its convolution, biases and priors are zero and its logits small, so that much could be wrong without a trace.
    """

    def make(model_class: type, config: GMAConfig, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return model

    return make


@pytest.fixture(scope="session")
def assert_close():
    """
    `assert_close(actual, expected, tolerance)`: no entry is off by more than `tolerance` of the largest entry, and
    none by more than ten times `tolerance` of the largest in its row, where that is more than a hundredth of the
    largest of all; or of `at_least`, for what is small only because large terms cancel.
    """

    def check(
        actual: torch.Tensor,
        expected: torch.Tensor,
        tolerance: float,
        what: str = "tensors",
        at_least: float = 1e-30,
    ) -> None:
        assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} and {tuple(expected.shape)}"
        if actual.numel() == 0:
            return
        actual, expected = actual.detach().double(), expected.detach().double()
        assert actual.isfinite().all() and expected.isfinite().all(), f"{what}: not finite"
        errors, scale = (actual - expected).abs(), expected.abs().max().item()
        error = errors.max().item()
        assert error <= tolerance * max(scale, at_least), f"{what}: off by {error:.3g}, largest {scale:.3g}"
        if expected.ndim > 1:
            of_rows = expected.abs().amax(-1).clamp_min(max(scale / 100, at_least))
            worst = (errors.amax(-1) / of_rows).max().item()
            assert worst <= 10 * tolerance, f"{what}: a row is off by {worst:.3g} of its largest entry"

    return check


@pytest.fixture(scope="session")
def pad_rows():
    """
    `pad_rows(rows, side, seed=0)`: rows of token ids as one batch and its mask, padded on the "left", on the "right",
    or in the "middle" (at both ends and between tokens). What stands at the padding is random.
    """

    def pad(rows: list[torch.Tensor], side: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        width = max(len(row) for row in rows) + (5 if side == "middle" else 0)
        ids = torch.randint(1, 61, (len(rows), width), generator=generator)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for index, row in enumerate(rows):
            places = {
                "left": torch.arange(width - len(row), width),
                "right": torch.arange(len(row)),
                "middle": torch.randperm(width, generator=generator)[: len(row)].sort().values,
            }[side]
            ids[index, places] = row
            mask[index, places] = 1
        return ids, mask

    return pad


@pytest.fixture(scope="session")
def random_rows():
    """`random_rows(lengths, seed=0)`: a row of random token ids for each length."""

    def make(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(1, 61, (length,), generator=generator) for length in lengths]

    return make
