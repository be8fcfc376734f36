"""The heads: losses, gradients, tied weights, and the inputs and outputs that every Transformers model has."""

import pytest
import torch

from gma_hf import (
    GMAForCausalLM,
    GMAForMaskedLM,
    GMAForMultipleChoice,
    GMAForQuestionAnswering,
    GMAForSequenceClassification,
    GMAForTokenClassification,
    GMAModel,
)
from gma_hf.model.attention_gma import GaussianMixtureAttention
from gma_hf.model.documents_gma import Documents


CAUSAL = ["causal", "causal_additions", "causal_hybrid"]
BIDIRECTIONAL = ["bidirectional", "bidirectional_conv", "bidirectional_hybrid"]
BOTH = [GMAForSequenceClassification, GMAForTokenClassification, GMAForQuestionAnswering, GMAForMultipleChoice]
HEADS = [
    *((GMAForCausalLM, name) for name in CAUSAL),
    *((GMAForMaskedLM, name) for name in BIDIRECTIONAL),
    *((head, name) for head in BOTH for name in ("causal_additions", "bidirectional_conv", "bidirectional_hybrid")),
]
LANGUAGE_MODELS = HEADS[:6]
every_head = pytest.mark.parametrize(
    ("head", "name"), HEADS, ids=lambda value: value if isinstance(value, str) else value.__name__
)
every_language_model = pytest.mark.parametrize(
    ("head", "name"), LANGUAGE_MODELS, ids=lambda value: value if isinstance(value, str) else value.__name__
)


def inputs_of(head, length=19):
    """A batch with labels for a head, with padding."""
    torch.manual_seed(0)
    shape = (2, 3, length) if head is GMAForMultipleChoice else (2, length)
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, ..., -4:] = 0
    ids = torch.randint(1, 61, shape)
    labels = {
        GMAForCausalLM: lambda: {"labels": ids.masked_fill(mask == 0, -100)},
        GMAForMaskedLM: lambda: {"labels": ids.masked_fill(torch.rand(shape) < 0.5, -100)},
        GMAForSequenceClassification: lambda: {"labels": torch.tensor([0, 2])},
        GMAForTokenClassification: lambda: {"labels": torch.randint(0, 3, shape)},
        GMAForQuestionAnswering: lambda: {
            "start_positions": torch.tensor([1, 4]),
            "end_positions": torch.tensor([3, 9]),
        },
        GMAForMultipleChoice: lambda: {"labels": torch.tensor([2, 0])},
        GMAModel: lambda: {},
    }
    return {"input_ids": ids, "attention_mask": mask, **labels[head]()}


@every_head
def test_a_loss_reaches_every_parameter(make_config, make_model, head, name):
    config = make_config(name, num_labels=3)
    model = make_model(head, config)
    loss = model(**inputs_of(head)).loss
    assert loss.ndim == 0 and loss.isfinite()
    loss.backward()
    # A softmax, over keys or over choices, does not see what is added to all of them
    softmax_layers = [i for i, layer_type in enumerate(config.layer_types) if layer_type == "full_attention"]
    unseen = {f"model.layers.{i}.attention.k_proj.bias" for i in softmax_layers}
    if head is GMAForMultipleChoice:
        unseen.add("classifier.out_proj.bias")
    mixtures = 0
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert key in unseen or (parameter.grad != 0).any(), key
        mixtures += ".mixture." in key
    assert mixtures == config.layer_types.count("gma") * (4 if config.normalize_routing else 3)


@every_head
def test_a_fresh_model_starts_at_chance(make_config, head, name):
    """No class is preferred before training, so the loss is the logarithm of their number."""
    inputs = inputs_of(head)
    torch.manual_seed(0)
    config = make_config(name, num_labels=3)
    loss = head(config).eval()(**inputs).loss
    choices = {GMAForCausalLM: 61, GMAForMaskedLM: 61, GMAForQuestionAnswering: 19}.get(head, 3)
    assert abs(loss.item() - torch.tensor(float(choices)).log().item()) < 0.25


def test_the_causal_loss_is_that_of_the_next_token(make_config, make_model, assert_close):
    model, inputs = make_model(GMAForCausalLM, make_config("causal")), inputs_of(GMAForCausalLM)
    outputs = model(**inputs)
    expected = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=-100
    )
    assert_close(outputs.loss, expected, 1e-5)


@pytest.mark.parametrize(
    ("labels", "problem", "loss"),
    [
        (torch.tensor([0, 2]), None, torch.nn.functional.cross_entropy),
        (torch.rand(2, 3).round(), "multi_label_classification", torch.nn.functional.binary_cross_entropy_with_logits),
        (torch.randn(2, 3), "regression", torch.nn.functional.mse_loss),
    ],
    ids=["one label", "many labels", "regression"],
)
@pytest.mark.parametrize("name", ["causal", "bidirectional"])
def test_classification_knows_three_problems(make_config, make_model, assert_close, name, labels, problem, loss):
    model = make_model(GMAForSequenceClassification, make_config(name, num_labels=3, problem_type=problem))
    outputs = model(**{**inputs_of(GMAForSequenceClassification), "labels": labels})
    assert outputs.logits.shape == (2, 3)
    assert_close(outputs.loss, loss(outputs.logits, labels), 1e-5)


@every_language_model
def test_tied_weights_stay_tied(make_config, make_model, tmp_path, head, name):
    model = make_model(head, make_config(name))

    def assert_tied(model, rows):
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert embedding.data_ptr() == output.data_ptr() and embedding.shape == output.shape == (
            rows,
            model.config.embedding_size,
        )

    assert_tied(model, 61)
    model.save_pretrained(tmp_path)
    assert_tied(head.from_pretrained(tmp_path), 61)
    for rows in (70, 50):
        model.resize_token_embeddings(rows)
        assert_tied(model, rows)
        assert model(torch.tensor([[1, rows - 1]])).logits.shape == (1, 2, rows)
    model.save_pretrained(tmp_path)
    assert_tied(head.from_pretrained(tmp_path), 50)


@every_language_model
def test_weights_are_untied_where_the_config_says_so(make_config, make_model, head, name):
    model = make_model(head, make_config(name, tie_word_embeddings=False))
    assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)


@pytest.mark.parametrize(("head", "name"), [*HEADS, (GMAModel, "causal"), (GMAModel, "bidirectional")])
@torch.no_grad()
def test_embeddings_equal_the_ids_they_are_of(make_config, make_model, head, name):
    model, inputs = make_model(head, make_config(name, num_labels=3)), inputs_of(head)
    expected = model(**inputs)
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    actual = model(**inputs, inputs_embeds=embeddings)
    for key in expected:
        if isinstance(expected[key], torch.Tensor):
            assert torch.equal(actual[key], expected[key]), key


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_logits_to_keep(make_config, make_model, assert_close, name):
    model, inputs = make_model(GMAForCausalLM, make_config(name)), inputs_of(GMAForCausalLM)
    del inputs["labels"]
    whole = model(**inputs).logits
    for keep, expected in ((1, whole[:, -1:]), (5, whole[:, -5:]), (torch.tensor([0, 7]), whole[:, [0, 7]])):
        assert_close(model(**inputs, logits_to_keep=keep).logits, expected, 1e-5)


@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
@torch.no_grad()
def test_hidden_states(make_config, make_model, name):
    model, inputs = make_model(GMAModel, make_config(name)), inputs_of(GMAModel)
    outputs = model(**inputs, output_hidden_states=True)
    layers = model.config.num_hidden_layers
    assert len(outputs.hidden_states) == layers + 1
    assert all(states.shape == (2, 19, 24) for states in outputs.hidden_states)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert len({states.sum().item() for states in outputs.hidden_states}) == layers + 1
    assert model(**inputs).hidden_states is None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CAUSAL + BIDIRECTIONAL)
@torch.no_grad()
def test_attentions(make_config, make_model, assert_close, name, implementation):
    config = make_config(name, read_epsilon=1e-9)  # a row sums to one up to this over the mass it reads
    config._attn_implementation = implementation
    model, inputs = make_model(GMAModel, config), inputs_of(GMAModel)
    mask = inputs["attention_mask"].bool()
    plain = model(**inputs)
    assert plain.attentions is None
    if implementation == "sdpa" and "full_attention" in config.layer_types:
        return  # gives no weights, as everywhere in Transformers
    outputs = model(**inputs, output_attentions=True)
    assert_close(outputs.last_hidden_state[mask], plain.last_hidden_state[mask], 1e-5)
    assert len(outputs.attentions) == config.num_hidden_layers
    for weights in outputs.attentions:
        assert weights.shape == (2, 2, 19, 19)
        rows = weights.sum(-1).transpose(1, 2)[mask]
        assert_close(rows, torch.ones_like(rows), 1e-4)
        assert (weights >= 0).all()
        assert (weights.masked_select(~mask[:, None, None, :]) == 0).all()
        if config.is_causal:
            assert (weights.triu(1) == 0).all()


@pytest.mark.parametrize("name", ["causal", "causal_additions", "bidirectional", "bidirectional_conv"])
@torch.no_grad()
def test_the_affinity_is_what_the_mixer_applied(make_config, make_model, assert_close, name):
    """Affinity times values, through the output projection, is the output of the mixer."""
    config = make_config(name)
    mixer = make_model(GMAModel, config).layers[0].attention
    assert isinstance(mixer, GaussianMixtureAttention)
    hidden_states, mask = torch.randn(2, 19, 24), inputs_of(GMAModel)["attention_mask"].bool()
    values, projected = [], []
    mixer.o_proj.register_forward_hook(lambda module, inputs, output: projected.append(inputs[0]))
    project = mixer.qkv_proj if mixer.convolution is None else mixer.convolution
    project.register_forward_hook(lambda module, inputs, output: values.append(output))
    weights = mixer(hidden_states, Documents(mask), output_attentions=True).affinity
    projected_all = values[0] if mixer.convolution is None else values[0][0]
    value = projected_all[..., -24:]
    read = weights @ value.unflatten(-1, (2, -1)).transpose(1, 2)
    gate = 1 if mixer.output_gate is None else torch.nn.functional.silu(mixer.output_gate(hidden_states))
    assert_close(projected[0], read.transpose(1, 2).flatten(2) * gate, 1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("head", "name"), LANGUAGE_MODELS)
def test_checkpointed_gradients_are_the_same(make_config, make_model, assert_close, head, name, reentrant):
    model, inputs = make_model(head, make_config(name)).train(), inputs_of(head)
    loss = model(**inputs).loss
    loss.backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    again = model(**inputs).loss
    again.backward()
    assert_close(again, loss, 1e-6)
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[key], 1e-5, key)


@pytest.mark.parametrize("marked_by", ["mask", "padding token"])
@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize(
    "name", ["causal", "causal_additions", "causal_hybrid", "bidirectional", "bidirectional_conv"]
)
@torch.no_grad()
def test_classification_reads_real_tokens(
    make_config, make_model, random_rows, pad_rows, assert_close, name, side, marked_by
):
    """The head reads the last real token (causal) or the first one, wherever the padding is."""
    model = make_model(GMAForSequenceClassification, make_config(name, num_labels=3, pad_token_id=0))
    rows = random_rows([1, 7, 8, 20])
    ids, mask = pad_rows(rows, side)
    chosen = []
    model.classifier.register_forward_hook(lambda module, inputs, output: chosen.append(inputs[0]))
    if marked_by == "mask":
        logits = model(ids, attention_mask=mask).logits
        alone = torch.cat([model(row[None]).logits for row in rows])
        assert_close(logits, alone, 1e-4)
    else:
        logits = model(ids * mask).logits
        places = mask.argmax(-1) if not model.config.is_causal else mask.shape[1] - 1 - mask.flip(-1).argmax(-1)
        picked = chosen[0][torch.arange(4), places]
        expected = model.classifier(picked[:, None], None)
        assert_close(logits, expected, 1e-5)


@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize("name", ["causal", "bidirectional"])
@torch.no_grad()
def test_classification_of_the_mean_token(make_config, make_model, random_rows, pad_rows, assert_close, name, side):
    """With `classifier_pooling="mean"` the head sees the mean over the real tokens."""
    model = make_model(GMAForSequenceClassification, make_config(name, num_labels=3, classifier_pooling="mean"))
    rows = random_rows([1, 7, 8, 20])
    ids, mask = pad_rows(rows, side)
    means = torch.cat([model.model(row[None]).last_hidden_state.mean(dim=1) for row in rows])
    expected = model.classifier(means[:, None], None)  # the mean of one
    assert_close(model(ids, attention_mask=mask).logits, expected, 1e-4)


@pytest.mark.parametrize("name", ["causal_additions", "bidirectional_conv"])
@torch.no_grad()
def test_each_choice_is_scored_alone(make_config, make_model, assert_close, name):
    model, inputs = make_model(GMAForMultipleChoice, make_config(name)), inputs_of(GMAForMultipleChoice)
    outputs = model(**inputs)
    assert outputs.logits.shape == (2, 3)
    for row in range(2):
        for choice in range(3):
            single = model(
                inputs["input_ids"][row, choice][None, None],
                attention_mask=inputs["attention_mask"][row, choice][None, None],
            )
            assert_close(outputs.logits[row, choice], single.logits[0, 0], 1e-4, at_least=outputs.logits.abs().max())
    assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"]), 1e-5)


@every_head
@torch.no_grad()
def test_outputs_may_be_a_tuple(make_config, make_model, head, name):
    model, inputs = make_model(head, make_config(name, num_labels=3)), inputs_of(head)
    named, plain = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], named.loss) and torch.equal(plain[1], named.to_tuple()[1])


@torch.no_grad()
def test_token_types_count(make_config, make_model):
    model, inputs = make_model(GMAModel, make_config("bidirectional")), inputs_of(GMAModel)
    zeros = torch.zeros_like(inputs["input_ids"])
    default, first, second = (
        model(**inputs, token_type_ids=types).last_hidden_state for types in (None, zeros, zeros + 1)
    )
    assert torch.equal(default, first) and not torch.equal(first, second)


@pytest.mark.parametrize(("head", "name"), [(GMAForCausalLM, "bidirectional"), (GMAForMaskedLM, "causal")])
def test_a_language_model_of_the_other_style_is_refused(make_config, head, name):
    with pytest.raises(ValueError, match="`is_causal` must be"):
        head(make_config(name))
