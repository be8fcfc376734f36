"""A document in pieces: what a bidirectional model gives for it in one, piece by piece, or a reason why not."""

import pytest
import torch

from gma_hf import GMAModel
from gma_hf.model.compat_gma import CACHE_NAME


@pytest.fixture
def ids(random_rows):
    return torch.stack(random_rows([23, 23]))


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("changes", [{}, {"position_embedding": "none", "norm_position": "pre"}], ids=["post", "pre"])
def test_a_document_in_pieces_is_the_document(make_config, make_model, ids, assert_close, changes, padded):
    model = make_model(GMAModel, make_config("bidirectional", **changes))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 4:9] = mask[0, 20:] = 0
    sizes = [7, 1, 3, 12]
    types = torch.arange(23).expand_as(ids) % 2
    pieces = model(*(x.split(sizes, dim=1) for x in (ids, mask, types))).last_hidden_state
    assert [x.shape[1] for x in pieces] == sizes
    outputs = [torch.cat(pieces, dim=1), model(ids, mask, types).last_hidden_state]
    assert_close(*outputs, 1e-4)
    weight = torch.randn(outputs[0].shape) * mask[..., None]
    parameters = dict(model.named_parameters())
    gradients = [torch.autograd.grad((x * weight).sum(), parameters.values(), allow_unused=True) for x in outputs]
    for name, *pair in zip(parameters, *gradients):
        if pair[1] is not None:
            assert_close(*pair, 1e-3, name, at_least=1e-2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("causal", "`is_causal`"),
        ("bidirectional_conv", "`conv_kernel_size`"),
        ("bidirectional_hybrid", "`layer_types`"),
    ],
)
def test_pieces_are_refused_where_they_cannot_be_exact(make_config, make_model, ids, name, reason):
    with pytest.raises(ValueError, match=f"`input_ids`.*{reason}"):
        make_model(GMAModel, make_config(name))([ids, ids])


@pytest.fixture
def pieces(ids):
    return list(ids.split([9, 14], dim=1))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda pieces: [], "the list is empty"),
        (lambda pieces: [pieces[0], pieces[1][:1]], r"piece 1 is \[1, 14\]"),
        (lambda pieces: [pieces[0], pieces[1][:, :0]], r"piece 1 is \[2, 0\]"),
        (lambda pieces: [x[0] for x in pieces], r"piece 0 is \[9\]"),
        (lambda pieces: [x.tolist() for x in pieces], "piece 0 is a list"),
    ],
)
def test_what_is_no_list_of_pieces_is_refused(make_config, make_model, pieces, change, what):
    with pytest.raises(ValueError, match=f"`input_ids`.*{what}"):
        make_model(GMAModel, make_config("bidirectional"))(change(pieces))


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids"])
def test_lists_that_do_not_fit_the_pieces_are_refused(make_config, make_model, pieces, name):
    model = make_model(GMAModel, make_config("bidirectional"))
    ones = [torch.ones_like(x) for x in pieces]
    for wrong in (ones[:1], ones[::-1], [None, ones[1]], torch.cat(ones, dim=1)):
        with pytest.raises(ValueError, match=rf"`{name}` must be a list.*\[\[2, 9\], \[2, 14\]\]"):
            model(pieces, **{name: wrong})


@pytest.mark.parametrize(
    "name", ["position_ids", CACHE_NAME, "inputs_embeds", "output_attentions", "output_hidden_states"]
)
def test_arguments_without_a_meaning_for_pieces_are_refused(make_config, make_model, pieces, name):
    model = make_model(GMAModel, make_config("bidirectional"))
    value = True if name.startswith("output") else torch.ones(2, 23)
    with pytest.raises(ValueError, match=f"`{name}` must be None or False"):
        model(pieces, **{name: value})
    if name == "output_hidden_states":  # asked for by the config
        model.config.output_hidden_states = True
        with pytest.raises(ValueError, match=f"`{name}` must be None or False"):
            model(pieces)
