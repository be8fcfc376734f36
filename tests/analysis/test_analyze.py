"""What is counted, on a model whose components are known, and against counting by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from gma_hf import GMAConfig, GMAForMaskedLM, GMAModel
from gma_hf.analysis import alignment, analyze, bhattacharyya_distances


KINDS = {"letters": str.isalpha, "digits": str.isdigit}


def kinds_of(text, spans):
    return [next((name for name, test in KINDS.items() if test(text[i:j])), "punctuation") for i, j in spans]


def test_planted_components_align_and_shuffled_ones_do_not(planted, character_tokenizer, planted_text):
    analysis = analyze(
        planted, character_tokenizer, [planted_text], labellers={"kind": kinds_of}, sequence_length=100, progress=False
    )
    assert analysis.counts.tokens == 3000
    table = analysis.alignment.set_index("labelling")
    for labelling in ("surface form", "kind"):
        rows = table.loc[labelling]
        assert len(rows) == 4  # two sides, two heads
        for name in ("nmi", "ami", "homogeneity", "completeness", "v_measure"):
            assert np.allclose(rows[name], 1.0), name
        assert (rows["control_nmi"] < 0.005).all() and (rows["control_std"] < 0.002).all()
    # Categories at random among the characters still say something of a routing that follows the character
    assert (table.loc["surface form", "renamed_nmi"] < 0.5).all() and table.loc["kind", "renamed_nmi"].isna().all()
    assert (table.loc["position", "ami"].abs() < 0.01).all()

    heads = analysis.heads
    assert (heads["dead_components"] == 1).all()
    assert (heads["effective_components"] < 3.0001).all() and (heads["effective_components"] > 2.9).all()
    assert np.allclose(heads["agreement_by_chance"], sum((np.array([8, 10, 6]) / 24) ** 2), atol=0.01)
    assert (heads["token_entropy"] < 1e-3).all() and np.allclose(heads["agreement"], 1, atol=1e-3)
    components = analysis.components.query("layer == 0 and side == 'key' and head == 1").set_index("component")
    share = sum(character.isdigit() for character in planted_text) / 3000
    assert components.loc[1, "mass"] == pytest.approx(share, abs=1e-3)
    assert components.loc[1, "largest"] == pytest.approx(share)
    assert components["dead"].tolist() == [False, False, False, True]

    top = analysis.top_tokens(30).query("side == 'query' and head == 0 and component == 1")
    assert set(top["text"]) == set("0123456789")
    assert top["count"].sum() == round(3000 * share) and np.allclose(top["lift"], 1 / share)
    examples = analysis.examples().query("head == 0 and component == 2")
    assert len(examples) == 3 and all(text in ".,;:!?" for text in examples["text"])
    first = examples.iloc[0]
    assert first["before"][-5:] + first["text"] + first["after"][:5] in planted_text
    assert (examples["responsibility"] > 0.99).all()


def test_sums_are_those_of_all_tokens_however_they_are_cut(character_tokenizer, planted_text):
    """Mass and entropy against the responsibilities themselves; padding does not count."""
    config = GMAConfig.bert_style(vocab_size=24, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
    config.num_components, config.layer_types = 5, ["full_attention", "gma"]
    torch.manual_seed(0)
    model = GMAForMaskedLM(config).eval()
    texts = [planted_text[:70], planted_text[70:75], planted_text[75:200]]
    analysis = analyze(model, character_tokenizer, texts, sequence_length=50, batch_size=4, progress=False)
    assert analysis.counts.layer_indices == [1] and set(analysis.heads["layer"]) == {1}
    pieces = [planted_text[a:b] for a, b in ((0, 50), (50, 70), (70, 75), (75, 125), (125, 175), (175, 200))]
    mass, entropy, agreement = 0, 0, 0
    for piece in pieces:
        ids = torch.tensor([character_tokenizer(piece)["input_ids"]])
        (sides,) = model.model(ids, output_responsibilities=True).responsibilities
        gamma = torch.cat(sides).double()  # [2, H, N, K]
        mass, entropy = mass + gamma.sum(2), entropy - (gamma * gamma.log()).sum((2, 3))
        agreement = agreement + (gamma[0] * gamma[1]).sum((1, 2))
    assert np.allclose(analysis.counts.mass[0], mass.detach(), rtol=1e-4)
    assert np.allclose(analysis.heads["token_entropy"], (entropy / 200).flatten().detach(), rtol=1e-4)
    assert np.allclose(analysis.heads["agreement"][:2], (agreement / 200).detach(), rtol=1e-4)
    assert analysis.counts.largest.sum((-1,)).tolist() == [[[200, 200], [200, 200]]]
    assert analysis.tokens_by_component["count"].sum() == 4 * 200
    capped = analyze(model, character_tokenizer, texts, sequence_length=50, max_tokens=120, progress=False)
    assert capped.counts.tokens == 120


def test_memory_does_not_grow_with_the_corpus(planted, character_tokenizer, planted_text):
    sizes = []
    for repeats in (1, 4):
        counts = analyze(planted, character_tokenizer, [planted_text] * repeats, progress=False).counts
        counts.tokens_by_component()
        arrays = [value for value in vars(counts).values() if isinstance(value, np.ndarray | pd.Series)]
        sizes.append(sum(array.nbytes for array in arrays))
    assert sizes[0] == sizes[1]


def test_alignment_of_a_table():
    independent = alignment(np.full((3, 4), 50))
    assert abs(independent["ami"]) < 0.02 and independent["nmi"] == pytest.approx(0, abs=1e-9)
    assert alignment(np.array([[7, 0], [5, 0]])) == dict.fromkeys(independent, 0.0)  # one component: nothing to say
    half = alignment(np.array([[100, 100, 0, 0], [0, 0, 100, 100]]))
    assert half["homogeneity"] == pytest.approx(1) and half["completeness"] == pytest.approx(0.5)
    assert half["v_measure"] == pytest.approx(2 / 3)


def test_distances_are_those_of_the_formula():
    means, variances = torch.randn(2, 3, 4), torch.rand(2, 3, 4) + 0.5
    distances = bhattacharyya_distances(means, variances)
    assert torch.allclose(distances.diagonal(dim1=1, dim2=2), torch.zeros(2, 3, dtype=torch.float64), atol=1e-7)
    # By integration, in one dimension
    x = torch.linspace(-30, 30, 100_001, dtype=torch.float64)
    one = torch.distributions.Normal(0.3, 1.1).log_prob(x)
    two = torch.distributions.Normal(-1.2, 0.7).log_prob(x)
    coefficient = torch.trapezoid(((one + two) / 2).exp(), x)
    pair = bhattacharyya_distances(torch.tensor([[[0.3], [-1.2]]]), torch.tensor([[[1.1**2], [0.7**2]]]))
    assert pair[0, 0, 1].item() == pytest.approx(-coefficient.log().item(), rel=1e-5)


def test_wrong_input_is_refused(planted, character_tokenizer):
    softmax = GMAModel(
        GMAConfig(
            vocab_size=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, layer_types=["full_attention"]
        )
    )
    with pytest.raises(ValueError, match="`model` must have GMA layers"):
        analyze(softmax, character_tokenizer, ["a"])
    with pytest.raises(ValueError, match="`texts` must hold at least one token"):
        analyze(planted, character_tokenizer, [], progress=False)
    with pytest.raises(ValueError, match="`sequence_length` must be at most .* 1024, but it is 5000"):
        analyze(planted, character_tokenizer, ["a"], sequence_length=5000)
    with pytest.raises(ValueError, match="`max_tokens` must be at least 1, but it is 0"):
        analyze(planted, character_tokenizer, ["a"], max_tokens=0)
    with pytest.raises(ValueError, match="`texts` must be several texts"):
        analyze(planted, character_tokenizer, "abc")
    with pytest.raises(ValueError, match="`labellers` must give one label per token, but 'kind' gave 0 for 2"):
        analyze(planted, character_tokenizer, ["ab"], labellers={"kind": lambda text, spans: []}, progress=False)
