"""Which backend mixes, and what is said where it cannot. Nothing here needs a GPU, Triton or fla."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from gma_hf import GMAForCausalLM
from gma_hf.model import fla_gma, mixing_gma
from gma_hf.model.fla_gma import uses_fla
from gma_hf.model.functional_gma import score_weights
from gma_hf.model.mixing_gma import mix_causal


CARD = Path(__file__).parents[2] / "model_cards" / "gma-shakespeare"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def installed(monkeypatch):
    """`installed(True)` or `installed(False)`: as if flash-linear-attention were, or were not."""

    def pretend(is_installed: bool) -> None:
        monkeypatch.setattr(fla_gma, "_import_scan", lambda: print if is_installed else None)

    return pretend


def assert_one_sentence(message, *said):
    assert all(words in message for words in said), message
    assert message.endswith(".") and "\n" not in message and ". " not in message


def make_inputs(length, dtype=torch.float32):
    torch.manual_seed(0)
    mixture = (torch.randn(2, 5, 4), torch.ones(2, 5, 4), torch.randn(2, 5))
    scores = score_weights(*(x.to(dtype) for x in mixture))
    queries, keys = torch.randn(2, 1, 2, length, 4, dtype=dtype)
    return queries, keys, torch.randn(1, 2, length, 3, dtype=dtype), scores, 1e-6, 16


@pytest.mark.parametrize(
    ("backend", "device", "is_installed", "expected"),
    [
        ("auto", CUDA, True, True),
        ("auto", CUDA, False, False),
        ("auto", CPU, True, False),
        ("auto", CPU, False, False),
        ("torch", CUDA, True, False),
        ("torch", CPU, True, False),
        ("fla", CUDA, True, True),
    ],
)
def test_the_choice(installed, backend, device, is_installed, expected):
    installed(is_installed)
    assert uses_fla(backend, device) is expected


def test_a_compiled_graph_stays_whole(installed):
    installed(True)
    torch._dynamo.reset()
    choose = torch.compile(lambda x: x + uses_fla("auto", CUDA), fullgraph=True, backend="eager")
    assert choose(torch.zeros(())) == 0


def test_forced_but_missing(installed):
    installed(False)
    with pytest.raises(ValueError) as error:
        uses_fla("fla", CUDA)
    assert_one_sentence(str(error.value), "`mixer_backend`", "'fla'", "pip install gma-hf[fla]", "'torch'")


@pytest.mark.parametrize("is_installed", [True, False])
def test_forced_without_a_gpu(installed, is_installed):
    installed(is_installed)
    with pytest.raises(ValueError) as error:
        mix_causal(*make_inputs(5), backend="fla")
    assert_one_sentence(str(error.value), "`mixer_backend`", "'fla'", "CUDA", "cpu", "'torch'")


def test_an_unknown_backend():
    with pytest.raises(ValueError) as error:
        mix_causal(*make_inputs(5), backend="cuda")
    assert_one_sentence(str(error.value), "`mixer_backend`", "'cuda'", "auto", "torch", "fla")


def test_missing_is_found_out_by_importing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    assert fla_gma._import_scan.__wrapped__() is None


def test_what_goes_through_it(monkeypatch):
    """Many tokens in one segment; one token, segments and float64 go through torch."""
    asked, passed = [], []
    monkeypatch.setattr(mixing_gma, "uses_fla", lambda *choice: asked.append(choice) or True)
    monkeypatch.setattr(mixing_gma, "mix_with_fla", lambda *inputs: passed.append(inputs) or "mixed")
    mask, log_decay, state = torch.ones(1, 5), torch.zeros(1, 2, 5), torch.zeros(1, 2, 5, 4)
    inputs = make_inputs(5)
    assert mix_causal(*inputs, mask, log_decay, state=state, backend="fla") == "mixed"
    assert asked == [("fla", CPU)] and len(passed) == 1
    assert all(x is y for x, y in zip(passed[0], [*inputs[:5], mask, log_decay, state], strict=True))
    for rest, choices in [
        (make_inputs(1), {}),
        (make_inputs(5), {"segments": torch.zeros(1, 5, dtype=torch.long)}),
        (make_inputs(5, torch.float64), {}),
    ]:
        output, _ = mix_causal(*rest, **choices)
        assert output.shape == rest[2].shape and len(passed) == 1


@torch.no_grad()
def test_the_config_decides(make_config, make_model):
    ids = torch.arange(1, 23)[None]
    model = make_model(GMAForCausalLM, make_config("causal_additions"))
    assert model.config.mixer_backend == "auto"
    expected = model(ids).logits
    model.config.mixer_backend = "torch"
    assert torch.equal(model(ids).logits, expected)
    model.config.mixer_backend = "fla"
    with pytest.raises(ValueError, match="`mixer_backend` is 'fla'"):
        model(ids)


# Opens a checkpoint by its own code where neither Triton, flash-linear-attention nor this package can be imported.
WITHOUT = """
    import sys
    sys.modules.update({"triton": None, "fla": None, "gma_hf": None})
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    ids = torch.arange(1, 23)[None]
    model(ids, labels=ids).loss.backward()
    new = model.generate(ids, max_new_tokens=2, do_sample=False)
    assert new.shape == (1, 24)
    kernels = sys.modules[type(model).__module__.replace("modeling_gma", "kernels_gma")]
    assert kernels.triton is None
"""


def test_a_checkpoint_opens_without_triton(tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(WITHOUT), str(CARD)]
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
