"""What is counted, on a model whose components are known, and against counting by hand."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gma_hf import GMAConfig, GMAForMaskedLM, GMAModel
from gma_hf.analysis import alignment, analyze, bhattacharyya_distances, reading
from gma_hf.analysis.reading import pieces, token_sequences


CARDS, DATA = Path(__file__).parents[2] / "model_cards", Path(__file__).parents[1] / "data"

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


def test_memory_does_not_grow_with_the_corpus(planted, character_tokenizer, monkeypatch):
    """One long text, of one line; Python's and NumPy's memory at the peak."""
    monkeypatch.setattr(reading, "PIECE", 10_000)
    peaks = []
    for length in (30_000, 120_000):
        letters = np.random.default_rng(0).choice(list("abcdefgh0123456789.,;:!? "), length)
        text = ["".join(letters)]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        analyze(planted, character_tokenizer, text, sequence_length=1000, progress=False).tokens_by_component  # noqa: B018
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_what_a_tokenizer_puts_around_a_text_is_read_and_not_counted():
    tokenizer = AutoTokenizer.from_pretrained(CARDS / "gma-minilm-l6")
    model = AutoModel.from_pretrained(CARDS / "gma-minilm-l6").float().eval()
    text = (DATA / "enwik8.txt").read_text()[:600]
    words = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    sequences = list(
        token_sequences(tokenizer, [text, " "], 30, {"span": lambda text, spans: [text[a:b] for a, b in spans]})
    )
    assert all(tokenizer.decode([row.ids[0], row.ids[-1]]) == "[CLS] [SEP]" for row in sequences)
    assert [sum(row.counted) for row in sequences] == [28] * (words // 28) + [words % 28]
    assert "".join(label for row in sequences for label in row.labels["span"]) == "".join(text.split())
    analysis = analyze(model, tokenizer, [text], sequence_length=30, max_tokens=40, progress=False)
    assert analysis.counts.tokens == 40
    read = model(torch.tensor([sequences[0].ids]), output_responsibilities=True).responsibilities
    later = model(torch.tensor([sequences[1].beginning(12).ids]), output_responsibilities=True).responsibilities
    mass = read[2][0][0, :, 1:-1].sum(1) + later[2][0][0, :, 1:].sum(1)
    assert np.allclose(analysis.counts.mass[2, 0], mass.detach(), rtol=1e-3, atol=1e-4)
    assert "[CLS]" not in set(analysis.top_tokens()["text"])


def test_pieces_make_the_text_and_end_before_white_space():
    text = "a wörd\r\n" * 30_000 + "b" * 250_000
    parts = list(pieces(text[start : start + 100_000] for start in range(0, len(text), 100_000)))
    assert "".join(parts) == text and max(map(len, parts)) < 200_000
    assert all(part[0].isspace() for part in parts[1:3]) and len(parts) == 5
    assert list(pieces([])) == [] and list(pieces(["a b"])) == ["a b"]


def test_shuffled_categories_keep_their_share_of_the_text():
    """The control is of a labelling that says as much as the true one."""
    tokenizer = AutoTokenizer.from_pretrained(CARDS / "gma-wikitext2")
    model = AutoModel.from_pretrained(CARDS / "gma-wikitext2")
    text = (DATA / "wikitext.txt").read_text()
    analysis = analyze(model, tokenizer, [text], progress=False)
    tables, renamed = analysis.contingencies(), analysis._renamed()
    assert set(renamed) == {"surface form", "length"}
    for name, draws in renamed.items():
        masses = tables[name][0, 0, 0].sum(1)
        for draw in draws:
            assert entropy(draw[0, 0, 0].sum(1)) == pytest.approx(entropy(masses), rel=0.1)
        assert not np.array_equal(draws[0], tables[name])
    rows = analysis.alignment.set_index("labelling")
    assert rows.loc["frequency", "renamed_nmi"].isna().all() and rows.loc["length", "renamed_nmi"].notna().all()


def test_alignment_of_a_table():
    independent = alignment(np.full((3, 4), 50))
    assert abs(independent["ami"]) < 0.02 and independent["nmi"] == pytest.approx(0, abs=1e-9)
    assert alignment(np.array([[7, 0], [5, 0]])) == dict.fromkeys(independent, 0.0)  # one component: nothing to say
    table = np.random.default_rng(0).integers(0, 30, (4, 6))
    labels, components = (np.repeat(index, table.ravel()) for index in np.indices(table.shape).reshape(2, -1))
    assert alignment(table)["ami"] == pytest.approx(adjusted_mutual_info_score(labels, components), abs=0.01)
    assert alignment(table)["nmi"] == pytest.approx(normalized_mutual_info_score(labels, components))
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
    with pytest.raises(ValueError, match="`labellers` must not be named surface form, .* but one is 'position'"):
        analyze(planted, character_tokenizer, ["ab"], labellers={"position": lambda text, spans: []})
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="`model` must be a GMA model, but it is a GPT2LMHeadModel"):
        analyze(gpt2, character_tokenizer, ["a"])
    with pytest.raises(ValueError, match="`model` must be in memory as a whole"):
        analyze(planted.to("meta"), character_tokenizer, ["a"])
