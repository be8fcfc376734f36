"""What is added to the paper's mixer, against the definition in `gma_hf.reference`."""

import pytest
import torch

from gma_hf import GMAForCausalLM, GMAModel
from gma_hf.model.additions_gma import MIN_LOG_DECAY, READ_EXPONENTS, log_forget_gate
from gma_hf.model.convolution_gma import short_convolution
from gma_hf.model.documents_gma import Documents
from gma_hf.reference import reference_convolution


BATCH, HEADS = 2, 2
EXTREME = 1e4


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("causal", "width"),
    [(True, 1), (True, 2), (True, 4), (False, 1), (False, 3), (False, 5)],
    ids=lambda value: {True: "causal", False: "centred"}[value] if isinstance(value, bool) else str(value),
)
@pytest.mark.parametrize("length", [1, 2, 21])
def test_convolution_is_the_definition(compare, leaves, padding_mask, length, causal, width, masked):
    torch.manual_seed(0)
    arguments = leaves({"x": torch.randn(BATCH, length, 6), "weight": torch.randn(6, width)})
    mask = padding_mask(length) if masked else None
    real = torch.ones(BATCH, length, dtype=torch.bool) if mask is None else mask  # padding is nobody's business
    compare(
        lambda **kwargs: [short_convolution(**kwargs, causal=causal, documents=Documents(mask))[0][real]],
        lambda **kwargs: [reference_convolution(**kwargs, causal=causal, mask=mask)[real]],
        arguments,
    )


def test_convolution_leaves_padding_as_it_is():
    """What comes before the first real token is predicted from padding, which must not see the end of its row."""
    torch.manual_seed(0)
    x, weight, mask = torch.randn(1, 12, 6), torch.randn(6, 4), torch.ones(1, 12, dtype=torch.bool)
    mask[:, :2] = mask[:, 7] = False
    for causal in (True, False):
        mixed, _ = short_convolution(x, weight[:, : 4 if causal else 3], causal, Documents(mask))
        assert torch.equal(mixed[~mask], x[~mask])


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("cuts", [[1], [2, 3], [9], [5, 6, 7, 20]], ids=str)
def test_a_tail_continues_a_convolution(assert_close, padding_mask, cuts, masked):
    torch.manual_seed(0)
    x, weight = torch.randn(BATCH, 21, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    mask = padding_mask(21) if masked else None
    whole, last_tail = short_convolution(x, weight, True, Documents(mask))
    parts, tail = [], None
    for start, end in zip([0, *cuts], [*cuts, 21]):
        piece = None if mask is None else mask[:, start:end]
        part, tail = short_convolution(x[:, start:end], weight, True, Documents(piece), tail)
        parts.append(part)
    real = torch.ones(BATCH, 21, dtype=torch.bool) if mask is None else mask
    assert_close(torch.cat(parts, dim=1)[real], whole[real], 1e-9)
    assert_close(tail, last_tail, 1e-9)
    row = x[0][real[0]]
    assert_close(tail[0], row[-3:], 1e-9)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("causal", "width"), [(True, 4), (False, 3)], ids=["causal", "centred"])
def test_gradients_of_a_convolution_by_differences(padding_mask, causal, width, masked):
    """Of packed documents too, and, where it is causal, with a tail."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 2, dtype=torch.float64), torch.randn(2, width, dtype=torch.float64)
    tail = torch.randn(2, width - 1, 2, dtype=torch.float64, requires_grad=True) if causal else None
    ids = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2]])
    documents = Documents(padding_mask(6) if masked else None, ids)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, tail) if tensor is not None]

    def convolve(x, weight, tail=None):
        return [y for y in short_convolution(x, weight, causal, documents, tail) if y is not None]

    assert torch.autograd.gradcheck(convolve, inputs, fast_mode=True)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
def test_packed_documents_are_convolved_apart(assert_close, causal):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 9, 6, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 0, 1]]).bool()
    ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2]])
    whole, tail = short_convolution(x, weight, causal, Documents(mask, ids))
    for document in range(3):
        here = ids[0] == document
        alone = reference_convolution(x[:, here], weight, causal, mask[:, here])
        assert_close(whole[:, here][mask[:, here]], alone[mask[:, here]], 1e-9)
    if causal:
        assert_close(tail, torch.stack([torch.zeros_like(x[0, 8]), x[0, 8]])[None], 1e-9)


def test_log_forget_gate(assert_close):
    logits = torch.tensor([[-EXTREME, -30.0, -3.0, 0.0, 3.0, 30.0, EXTREME]], dtype=torch.float64)[..., None]
    logits.requires_grad_()
    gate = log_forget_gate(logits)
    expected = torch.sigmoid(logits.detach()).log().clamp_min(MIN_LOG_DECAY)
    assert gate.shape == (1, 1, 7)
    assert_close(gate[0, 0], expected[0, :, 0], 1e-9)
    assert (gate <= 0).all() and (gate >= MIN_LOG_DECAY).all()
    (gradient,) = torch.autograd.grad(gate.sum(), logits)
    bounded = logits.detach() < MIN_LOG_DECAY
    assert_close(gradient, torch.sigmoid(-logits.detach()).masked_fill(bounded, 0.0), 1e-9)


def test_a_masked_token_forgets_nothing(padding_mask):
    logits, mask = torch.randn(BATCH, 7, HEADS), padding_mask(7)
    gate = log_forget_gate(logits, mask)
    hidden = ~mask[:, None].expand_as(gate)
    assert (gate[hidden] == 0).all() and (gate[~hidden] < 0).all()


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_log_forget_gate_of_half_precision_logits_is_float32(low):
    assert log_forget_gate(torch.randn(1, 3, 2).to(low)).dtype == torch.float32


def test_learned_read_exponents_start_spread_over_the_heads_and_learn(make_config):
    model = GMAForCausalLM(make_config("causal", read_exponent="learned", hidden_size=24, num_attention_heads=4))
    exponents = model.model.layers[1].attention.read_exponent
    torch.testing.assert_close(exponents(), torch.linspace(*READ_EXPONENTS, 4).flip(0))
    model(torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    assert (exponents.bias.grad != 0).all()


def test_a_read_exponent_of_zero_has_no_weights_and_is_the_papers_to_the_bit(make_config):
    torch.manual_seed(0)
    paper = GMAForCausalLM(make_config("causal"))
    models = {p: GMAForCausalLM(make_config("causal", read_exponent=p)) for p in (0.0, 0, 1e-9)}
    ids = torch.randint(61, (2, 40))
    expected = paper(ids).logits
    for p, model in models.items():
        model.load_state_dict(paper.state_dict())
        logits = model(ids).logits
        assert torch.equal(logits, expected) if p == 0 else torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("normalize_routing", [False, True], ids=["plain", "normalised"])
def test_with_a_mixture_rate_the_components_start_as_ever_and_learn_faster(make_config, normalize_routing):
    models = []
    for rate in (1.0, 4.0):
        torch.manual_seed(0)
        config = make_config("causal", mixture_rate=rate, normalize_routing=normalize_routing)
        models.append(GMAForCausalLM(config))
    mixtures = [model.model.layers[0].attention.mixture for model in models]
    before = [mixture.components() for mixture in mixtures]
    for x, y in zip(*before):
        assert (x is None and y is None) or torch.allclose(x, y, rtol=1e-6)
    for model in models:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-30)
        model(torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
        optimizer.step()
    moves = [
        (mixture.components().means - start.means).abs().mean().item() for mixture, start in zip(mixtures, before)
    ]
    assert moves[1] / moves[0] == pytest.approx(4, rel=1e-2)


@pytest.mark.parametrize("style", ["causal", "bidirectional"])
@pytest.mark.parametrize("normalize_routing", [False, True])
def test_keys_of_causal_normalised_routing_start_with_the_token_before(make_config, style, normalize_routing):
    config = make_config(style, conv_kernel_size=3, normalize_routing=normalize_routing, routing_dim=5)
    attention = GMAModel(config).layers[0].attention
    taps = torch.zeros_like(attention.convolution.weight)
    if style == "causal" and normalize_routing:
        width = 5 * config.num_attention_heads
        taps[width : 2 * width, 1] = 1
    torch.testing.assert_close(attention.convolution.weight, taps, rtol=0, atol=0)
