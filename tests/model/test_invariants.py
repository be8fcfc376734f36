"""What must stay true of the whole model: cutting, padding, causality, linear cost, and float32 where it matters."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from gma_hf import GMAForCausalLM, GMAForMaskedLM, GMAModel
from gma_hf.model.attention_gma import GaussianMixtureAttention
from gma_hf.model.compat_gma import CACHE_NAME


CAUSAL = ["causal", "causal_additions", "causal_hybrid", "causal_hybrid_additions"]
BIDIRECTIONAL = ["bidirectional", "bidirectional_conv", "bidirectional_hybrid"]
PURE = ["causal", "causal_additions", "bidirectional", "bidirectional_conv"]
LENGTHS = [1, 7, 8, 20]  # of the rows of a batch, around the chunk size of 8
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture
def language_model(make_config, make_model):
    def make(name, **overrides):
        config = make_config(name, **overrides)
        return make_model(GMAForCausalLM if config.is_causal else GMAForMaskedLM, config)

    return make


def read_in_pieces(model, ids, cuts, mask=None):
    """Logits of all tokens, and the cache, when the sequence is read in several calls."""
    cache, logits = DynamicCache(config=model.config), []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]]):
        piece = None if mask is None else mask[:, :end]
        logits.append(model(ids[:, start:end], attention_mask=piece, past_key_values=cache).logits)
    return torch.cat(logits, dim=1), cache


@pytest.mark.parametrize("padding", ["none", "left", "middle"])
@pytest.mark.parametrize(
    "cuts", [[1], [8], [7, 9], [20], list(range(1, 21))], ids=lambda cuts: f"{len(cuts)}-{cuts[0]}"
)
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_cutting_a_sequence_changes_nothing(language_model, random_rows, pad_rows, assert_close, name, cuts, padding):
    model = language_model(name)
    if padding == "none":
        ids, mask = torch.stack(random_rows([21, 21])), None
        real = torch.ones_like(ids, dtype=torch.bool)
    else:
        ids, mask = pad_rows(random_rows([16, 21] if padding == "left" else [9, 16]), padding)
        real = mask.bool()
    whole = model(ids, attention_mask=mask, use_cache=True)
    logits, cache = read_in_pieces(model, ids, cuts, mask)
    assert_close(logits[real], whole.logits[real], 1e-4)
    for one, other in zip(cache.layers, whole[CACHE_NAME].layers):
        assert one.get_seq_length() == other.get_seq_length() == 21
        if hasattr(one, "state"):
            assert_close(one.state, other.state, 1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_generation_with_the_cache_equals_without(language_model, random_rows, assert_close, name):
    model = language_model(name)
    ids = torch.stack(random_rows([11, 11]))
    choices = {"do_sample": False, "max_new_tokens": 15, "output_logits": True, "return_dict_in_generate": True}
    cached, plain = (model.generate(ids, use_cache=use_cache, **choices) for use_cache in (True, False))
    assert cached[CACHE_NAME] is not None and CACHE_NAME not in plain
    assert torch.equal(cached.sequences, plain.sequences)
    assert_close(torch.stack(cached.logits), torch.stack(plain.logits), 1e-4)


@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
@torch.no_grad()
def test_a_padded_batch_equals_each_row_alone(language_model, random_rows, pad_rows, assert_close, name, side):
    model = language_model(name)
    rows = random_rows(LENGTHS)
    ids, mask = pad_rows(rows, side)
    batch = model(ids, attention_mask=mask)
    for index, row in enumerate(rows):
        alone = model(row[None])
        assert_close(batch.logits[index][mask[index].bool()], alone.logits[0], 1e-4, f"row {index}")
        if not model.config.is_causal:
            continue
        for together, single in zip(batch[CACHE_NAME].layers, alone[CACHE_NAME].layers):
            if hasattr(single, "state"):
                assert ("conv_tail" in together.tensors) == (model.config.conv_kernel_size > 0)
                for name, tensor in single.tensors.items():
                    assert_close(together.tensors[name][index], tensor[0], 1e-4, f"{name} of row {index}")


@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
@torch.no_grad()
def test_what_stands_at_padding_changes_nothing(language_model, random_rows, pad_rows, name):
    model = language_model(name)
    rows = random_rows(LENGTHS)
    (ids, mask), (other_ids, other_mask) = (pad_rows(rows, "right", seed) for seed in (0, 1))
    assert torch.equal(mask, other_mask) and not torch.equal(ids, other_ids)
    one, other = (model(x, attention_mask=mask).logits for x in (ids, other_ids))
    torch.testing.assert_close(one[mask.bool()], other[mask.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 7, 8, 9, 15, 16, 25])
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_token_changes_nothing_before_it(language_model, random_rows, name, place):
    model = language_model(name)
    ids = torch.stack(random_rows([26]))
    changed = ids.clone()
    changed[0, place] = ids[0, place] % 60 + 1
    before, after = model(ids).logits[0], model(changed).logits[0]
    assert torch.equal(after[:place], before[:place])
    assert ((after - before)[place:].abs().amax(dim=-1) > 1e-5).all()


@pytest.mark.parametrize("place", [0, 8, 25])
@pytest.mark.parametrize("name", BIDIRECTIONAL)
@torch.no_grad()
def test_a_token_changes_everything_in_a_bidirectional_model(language_model, random_rows, name, place):
    model = language_model(name)
    ids = torch.stack(random_rows([26]))
    changed = ids.clone()
    changed[0, place] = ids[0, place] % 60 + 1
    assert ((model(changed).logits - model(ids).logits).abs().amax(dim=-1) > 1e-6).all()


class Ledger(TorchDispatchMode):
    """Counts what operations write: the largest tensor, all bytes together, and the most bytes alive at once."""

    def __init__(self):
        super().__init__()
        self.largest = self.total = self.alive = self.peak = 0
        self.storages = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        result = function(*arguments, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor):
        storage = tensor.untyped_storage()
        if storage in self.storages:
            return
        self.storages[storage] = True
        size = storage.nbytes()
        self.largest = max(self.largest, size // tensor.element_size())
        self.total += size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size)

    def _free(self, size):
        self.alive -= size


def cost_of_the_mixer(config, length):
    """The ledger of one forward and backward pass of a mixer over `length` tokens."""
    torch.manual_seed(0)
    mixer = GaussianMixtureAttention(config, 0)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden_states = torch.randn(1, length, config.hidden_size, requires_grad=True)
    with Ledger() as ledger:
        mixer(hidden_states)[0].square().sum().backward()
    assert hidden_states.grad is not None
    return ledger


@pytest.mark.parametrize("name", PURE)
def test_the_mixer_is_linear_in_memory_and_work(make_config, name):
    config, length = make_config(name, chunk_size=16, num_components=16), 4096
    short, long = (cost_of_the_mixer(config, tokens) for tokens in (length, 2 * length))
    assert long.largest <= 1.05 * 2 * short.largest
    assert long.peak <= 1.05 * 2 * short.peak
    assert long.total <= 1.05 * 2 * short.total  # every byte that is written costs time
    # What is used again for each block of tokens is as large for all lengths
    assert long.largest < 2 * length * 2 * length
    assert long.largest < 2 * length * config.num_components * config.head_dim


@pytest.mark.parametrize("name", ["causal", "causal_additions"])
@torch.no_grad()
def test_the_cache_does_not_grow(language_model, name):
    model = language_model(name, position_embedding="none")
    sizes = []
    for length in (1, 9, 500):
        cache = model(torch.randint(0, 61, (1, length)), use_cache=True)[CACHE_NAME]
        model(torch.randint(0, 61, (1, 1)), past_key_values=cache)
        tensors = [x for layer in cache.layers for x in layer.tensors.values()]
        sizes.append(sum(x.untyped_storage().nbytes() for x in tensors))
    assert len(set(sizes)) == 1
    width = model.config.head_dim + 1
    states = sum(layer.state.numel() for layer in cache.layers)
    assert states == model.config.num_hidden_layers * 2 * model.config.num_components * width


def cast(model, low, how, folder):
    if how == "from_pretrained":
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder, dtype=low).eval()
    if how == "to":
        return model.to(low)
    return model.half() if low == torch.float16 else model.bfloat16()


def mixtures(model):
    return {name: value for name, value in model.named_parameters() if ".mixture." in name}


@pytest.mark.parametrize("how", ["method", "to", "from_pretrained"])
@pytest.mark.parametrize("low", HALVES, ids=str)
@pytest.mark.parametrize("name", ["causal", "causal_additions", "causal_hybrid", "bidirectional_conv"])
@torch.no_grad()
def test_a_half_precision_model_routes_in_float32(
    language_model, random_rows, assert_close, tmp_path, monkeypatch, name, low, how
):
    model = language_model(name)
    ids = torch.stack(random_rows([21, 21]))
    exact = model(ids).logits
    weights = {name: value.clone() for name, value in mixtures(model).items()}
    model = cast(model, low, how, tmp_path)
    assert model.dtype == low and model.get_output_embeddings().weight.dtype == low
    assert mixtures(model).keys() == weights.keys()
    for key, value in mixtures(model).items():
        assert value.dtype == torch.float32 and torch.equal(value, weights[key]), key
    outputs = model(ids, output_responsibilities=True)
    gammas = [gamma for pair in outputs.responsibilities for gamma in pair]
    assert outputs.logits.dtype == low
    assert_close(outputs.logits, exact, 0.05)
    assert len(gammas) == 2 * model.config.layer_types.count("gma")
    assert all(gamma.dtype == torch.float32 for gamma in gammas)
    if model.config.is_causal:
        for _ in range(2):
            layers = outputs[CACHE_NAME].layers
            assert all(layer.state.dtype == torch.float32 for layer in layers if hasattr(layer, "state"))
            outputs = model(ids[:, :1], past_key_values=outputs[CACHE_NAME])


@pytest.mark.parametrize("name", ["causal", "causal_additions", "bidirectional_conv"])
def test_autocast_routes_in_float32(make_config, make_model, random_rows, assert_close, name):
    model = make_model(GMAModel, make_config(name))
    ids = torch.stack(random_rows([21, 21]))
    exact = model(ids).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(ids, output_responsibilities=True)
    gammas = [gamma for pair in outputs.responsibilities for gamma in pair]
    assert_close(outputs.last_hidden_state, exact, 0.05)
    assert all(gamma.dtype == torch.float32 for gamma in gammas)
    rows = torch.stack(gammas).sum(-1)
    assert_close(rows, torch.ones_like(rows), 1e-5)
    if model.config.is_causal:
        assert all(layer.state.dtype == torch.float32 for layer in outputs[CACHE_NAME].layers)
    outputs.last_hidden_state.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in mixtures(model).values())
