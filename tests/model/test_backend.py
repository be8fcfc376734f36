"""Which backend mixes, and what is said where it cannot. Nothing here needs a GPU, Triton or fla."""

import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gma_hf import GMAForCausalLM
from gma_hf.model import backend_gma, fla_gma, mixing_gma, routing_kernels_gma, triton_gma
from gma_hf.model.backend_gma import choose_backend
from gma_hf.model.functional_gma import score_weights
from gma_hf.model.mixing_gma import mix_causal


CARD = Path(__file__).parents[2] / "model_cards" / "gma-shakespeare"


@pytest.fixture
def installed(monkeypatch):
    """`installed("triton", "fla")`: as if these could be had, and the other not; Triton's interpreter is off."""

    def pretend(*names: str) -> None:
        monkeypatch.setattr(fla_gma, "_import_scan", lambda: print if "fla" in names else None)
        for module in (backend_gma, routing_kernels_gma):
            monkeypatch.setattr(module, "has_kernels", lambda device: "triton" in names)
        monkeypatch.setattr(backend_gma, "IS_INTERPRETED", False)

    return pretend


def queries_on(device, dtype=torch.float32):
    """What is asked of queries, since there is no GPU to put them on."""
    return SimpleNamespace(is_cuda=device == "cuda", device=torch.device(device), dtype=dtype)


def scores_of(components=5):
    return score_weights(torch.randn(2, components, 4), torch.ones(2, components, 4), torch.randn(2, components))


def assert_one_sentence(message, *said):
    assert all(words in message for words in said), message
    assert message.endswith(".") and "\n" not in message and ". " not in message


def make_inputs(length, dtype=torch.float32):
    torch.manual_seed(0)
    mixture = (torch.randn(2, 5, 4), torch.ones(2, 5, 4), torch.randn(2, 5))
    scores = score_weights(*(x.to(dtype) for x in mixture))
    queries, keys = torch.randn(2, 1, 2, length, 4, dtype=dtype)
    return queries, keys, torch.randn(1, 2, length, 3, dtype=dtype), scores, 1e-6, 16


BOTH = ["triton", "fla"]


@pytest.mark.parametrize(
    ("backend", "device", "names", "expected"),
    [
        ("auto", "cuda", BOTH, "triton"),
        ("auto", "cuda", ["triton"], "triton"),
        ("auto", "cuda", ["fla"], "fla"),
        ("auto", "cuda", [], "torch"),
        ("auto", "cpu", BOTH, "torch"),
        ("torch", "cuda", BOTH, "torch"),
        ("torch", "cpu", [], "torch"),
        ("triton", "cuda", ["triton"], "triton"),
        ("fla", "cuda", BOTH, "fla"),
    ],
)
def test_the_choice(installed, backend, device, names, expected):
    installed(*names)
    assert choose_backend(backend, queries_on(device), scores_of()) == expected


@pytest.mark.parametrize(("names", "expected"), [(BOTH, "fla"), (["triton"], "torch")])
def test_more_components_than_the_kernels_take(installed, names, expected):
    installed(*names)
    assert choose_backend("auto", queries_on("cuda"), scores_of(257)) == expected


@pytest.mark.parametrize(
    ("capability", "is_amd", "expected"), [((9, 0), False, True), ((7, 5), False, False), ((9, 0), True, False)]
)
def test_gpus_that_the_kernels_are_for(monkeypatch, capability, is_amd, expected):
    monkeypatch.setattr(triton_gma, "triton", "triton")
    monkeypatch.setattr(triton_gma, "IS_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", "6.0" if is_amd else None)
    assert triton_gma.has_kernels(torch.device("cuda")) is expected


@pytest.mark.parametrize("backend", ["auto", "triton", "fla"])
def test_float64_is_for_torch(installed, backend):
    installed(*BOTH)
    assert choose_backend(backend, queries_on("cuda", torch.float64), scores_of()) == "torch"


@pytest.mark.parametrize("names", [["fla"], BOTH])
def test_a_compiled_graph_stays_whole(installed, names):
    installed(*names)
    torch._dynamo.reset()
    queries, scores = queries_on("cuda"), scores_of()
    choose = torch.compile(
        lambda x: x + (choose_backend("auto", queries, scores) == "fla"), fullgraph=True, backend="eager"
    )
    assert choose(torch.zeros(())) == 0


@pytest.mark.parametrize(
    ("backend", "components", "names", "said"),
    [
        ("fla", 5, [], ["'fla'", "pip install gma-hf[fla]", "'torch'"]),
        ("triton", 5, [], ["'triton'", "Triton", "compute capability 8.0", "'torch'"]),
        ("triton", 257, BOTH, ["'triton'", "at most 256 components", "257", "'torch'"]),
    ],
)
def test_forced_but_not_to_be_had(installed, backend, components, names, said):
    installed(*names)
    with pytest.raises(ValueError) as error:
        choose_backend(backend, queries_on("cuda"), scores_of(components))
    assert_one_sentence(str(error.value), "`mixer_backend`", *said)


@pytest.mark.parametrize("backend", ["triton", "fla"])
@pytest.mark.parametrize("names", [BOTH, []])
def test_forced_without_a_gpu(installed, backend, names):
    installed(*names)
    with pytest.raises(ValueError) as error:
        mix_causal(*make_inputs(5), backend=backend)
    assert_one_sentence(str(error.value), "`mixer_backend`", f"'{backend}'", "CUDA", "cpu", "'torch'")


def test_an_unknown_backend():
    with pytest.raises(ValueError) as error:
        mix_causal(*make_inputs(5), backend="cuda")
    assert_one_sentence(str(error.value), "`mixer_backend`", "'cuda'", "auto", "torch", "triton", "fla")


def test_missing_is_found_out_by_importing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    assert fla_gma._import_scan.__wrapped__() is None


def test_what_goes_through_fla(monkeypatch):
    """Many tokens in one segment; one token and segments go through torch."""
    passed = []
    monkeypatch.setattr(mixing_gma, "choose_backend", lambda *asked: "fla")
    monkeypatch.setattr(mixing_gma, "mix_with_fla", lambda *inputs: passed.append(inputs) or "mixed")
    mask, log_decay, state = torch.ones(1, 5), torch.zeros(1, 2, 5), torch.zeros(1, 2, 5, 4)
    inputs = make_inputs(5)
    assert mix_causal(*inputs, mask, log_decay, state=state) == "mixed"
    assert all(x is y for x, y in zip(passed[0], [*inputs[:5], mask, log_decay, state], strict=True))
    for rest, choices in [(make_inputs(1), {}), (make_inputs(5), {"segments": torch.zeros(1, 5, dtype=torch.long)})]:
        output, _ = mix_causal(*rest, **choices)
        assert output.shape == rest[2].shape and len(passed) == 1


def test_what_goes_through_our_kernels(monkeypatch):
    """Many tokens, segments too; one token goes through torch."""
    passed = []
    monkeypatch.setattr(mixing_gma, "choose_backend", lambda *asked: "triton")
    monkeypatch.setattr(mixing_gma, "fused_scan", lambda *inputs: passed.append(inputs) or ("mixed", "state", 0, 0))
    segments = torch.zeros(1, 5, dtype=torch.long)
    assert mix_causal(*make_inputs(5), segments=segments) == ("mixed", "state")
    assert passed[0][8] is segments
    inputs = make_inputs(1)
    assert mix_causal(*inputs)[0].shape == inputs[2].shape and len(passed) == 1


@torch.no_grad()
def test_the_config_decides(make_config, make_model):
    ids = torch.arange(1, 23)[None]
    model = make_model(GMAForCausalLM, make_config("causal_additions"))
    assert model.config.mixer_backend == "auto"
    expected = model(ids).logits
    model.config.mixer_backend = "torch"
    assert torch.equal(model(ids).logits, expected)
    for backend in BOTH:
        model.config.mixer_backend = backend
        with pytest.raises(ValueError, match=f"`mixer_backend` is '{backend}'"):
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
    triton_gma = sys.modules[type(model).__module__.replace("modeling_gma", "triton_gma")]
    assert triton_gma.triton is None
"""


def test_a_checkpoint_opens_without_triton(tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(WITHOUT), str(CARD)]
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
