"""Which backend mixes, and what is said where one cannot. Nothing here needs a GPU or Triton."""

import subprocess
import sys
import textwrap

import pytest
import torch

from gma_hf import GMAForCausalLM
from gma_hf.model import backend_triton_gma, kernels_gma, mixing_gma
from gma_hf.model.backend_torch_gma import torch_problem
from gma_hf.model.backend_triton_gma import triton_problem
from gma_hf.model.documents_gma import Documents
from gma_hf.model.equations_gma import Mixture, score_weights
from gma_hf.model.mixing_gma import Backend, mix_causal
from gma_hf.model.operators_gma import CausalInputs


class OnGPU:
    """What is asked of queries, since there is no GPU to put them on."""

    is_cuda, device = True, torch.device("cuda")

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype


@pytest.fixture
def has_kernels(monkeypatch):
    """`has_kernels(bool)`: as if there were a GPU for the kernels, or none; Triton's interpreter is off."""

    def pretend(value: bool) -> None:
        monkeypatch.setattr(backend_triton_gma, "has_kernels", lambda device: value)
        monkeypatch.setattr(backend_triton_gma, "IS_INTERPRETED", False)

    return pretend


def scores_of(components=5, dtype=torch.float32):
    shape = (2, components, 4)
    return score_weights(Mixture(torch.randn(shape), torch.ones(shape), torch.randn(shape[:2])))


def inputs_of(queries, components=5):
    return CausalInputs(queries, None, None, *scores_of(components), None, None, None, None, None)


def make_inputs(length):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 1, 2, length, 4)
    return queries, keys, torch.randn(1, 2, length, 3), scores_of(), 1e-6, 16


def assert_one_sentence(message, *said):
    assert all(words in message for words in said), message
    assert message.endswith(".") and "\n" not in message and ". " not in message


def test_the_kernels_take_what_they_can(has_kernels):
    has_kernels(True)
    assert triton_problem(inputs_of(OnGPU())) is None
    assert triton_problem(inputs_of(OnGPU(torch.bfloat16), 256)) is None
    assert "at most 256 components, but there are 257" in triton_problem(inputs_of(OnGPU(), 257))
    assert "float64" in triton_problem(inputs_of(OnGPU(torch.float64)))
    assert "CUDA device, but it is on cpu" in triton_problem(inputs_of(torch.zeros(1, 2, 3, 4)))
    has_kernels(False)
    assert "compute capability 8.0" in triton_problem(inputs_of(OnGPU()))


def test_torch_takes_everything():
    assert torch_problem(inputs_of(OnGPU(torch.float64), 257)) is None


@pytest.mark.parametrize(
    ("capability", "is_amd", "expected"), [((9, 0), False, True), ((7, 5), False, False), ((9, 0), True, False)]
)
def test_gpus_that_the_kernels_are_for(monkeypatch, capability, is_amd, expected):
    monkeypatch.setattr(kernels_gma, "triton", "triton")
    monkeypatch.setattr(kernels_gma, "IS_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", "6.0" if is_amd else None)
    assert kernels_gma.has_kernels(torch.device("cuda")) is expected


@pytest.mark.parametrize(
    ("problems", "expected"), [((None, None), "first"), (("but no", None), "second")], ids=["first", "second"]
)
def test_auto_takes_the_first_without_a_problem(monkeypatch, problems, expected):
    backends = {
        name: Backend(lambda inputs, found=found: found, lambda *_, name=name: (name, "state"), None)
        for name, found in zip(("first", "second"), problems)
    }
    monkeypatch.setattr(mixing_gma, "BACKENDS", backends)
    assert mix_causal(*make_inputs(5)) == (expected, "state")


def test_a_backend_gets_named_inputs_and_mixes_one_token_by_itself(monkeypatch):
    passed = []
    mix, mix_token = (lambda *given, name=name: passed.append(given) or (name, "state") for name in ("many", "one"))
    monkeypatch.setattr(mixing_gma, "BACKENDS", {"ours": Backend(lambda inputs: None, mix, mix_token)})
    ids, log_decay = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 2, 5)
    documents = Documents(torch.ones(1, 5, dtype=torch.bool), ids)
    assert mix_causal(*make_inputs(5), documents, log_decay, backend="ours") == ("many", "state")
    ((inputs, epsilon, chunk_size),) = passed
    assert inputs.document_ids is ids and inputs.mask is documents.mask and inputs.log_decay is log_decay
    assert (epsilon, chunk_size) == (1e-6, 16)
    state = torch.zeros(1, 2, 5, 4)
    assert mix_causal(*make_inputs(1), state=state, backend="ours", in_place=True) == ("one", "state")
    assert passed[1][0].state is state and passed[1][1:] == (1e-6, True)
    mix_causal(*make_inputs(1), backend="ours", in_place=True)
    assert passed[2][1:] == (1e-6, False)  # there is no state to write over


def test_a_compiled_graph_stays_whole():
    torch._dynamo.reset()
    inputs = make_inputs(5)
    compiled = torch.compile(lambda: mix_causal(*inputs)[0], fullgraph=True, backend="eager")
    assert torch.equal(compiled(), mix_causal(*inputs)[0])


@pytest.mark.parametrize("length", [1, 5])
def test_forced_without_a_gpu(has_kernels, length):
    has_kernels(True)
    with pytest.raises(ValueError) as error:
        mix_causal(*make_inputs(length), backend="triton")
    assert_one_sentence(str(error.value), "`mixer_backend`", "'triton'", "CUDA", "cpu", "'torch'")


def test_an_unknown_backend():
    with pytest.raises(ValueError) as error:
        mix_causal(*make_inputs(5), backend="cuda")
    assert_one_sentence(str(error.value), "`mixer_backend`", "'cuda'", "auto", "torch", "triton")


@torch.no_grad()
def test_the_config_decides(make_config, make_model):
    ids = torch.arange(1, 23)[None]
    model = make_model(GMAForCausalLM, make_config("causal_additions"))
    assert model.config.mixer_backend == "auto"
    expected = model(ids).logits
    model.config.mixer_backend = "torch"
    assert torch.equal(model(ids).logits, expected)
    model.config.mixer_backend = "triton"
    with pytest.raises(ValueError, match="`mixer_backend` is 'triton'"):
        model(ids)


# Opens a checkpoint by its own code where neither Triton nor this package can be imported.
WITHOUT = """
    import sys
    sys.modules.update({"triton": None, "gma_hf": None})
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    ids = torch.arange(1, 23)[None]
    model(ids, labels=ids).loss.backward()
    new = model.generate(ids, max_new_tokens=2, do_sample=False)
    assert new.shape == (1, 24)
    kernels_gma = sys.modules[type(model).__module__.replace("modeling_gma", "kernels_gma")]
    assert kernels_gma.triton is None
"""


def test_a_checkpoint_opens_without_triton(make_config, make_model, tmp_path):
    make_model(GMAForCausalLM, make_config("causal_additions")).save_pretrained(tmp_path / "model")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(WITHOUT), str(tmp_path / "model")]
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
