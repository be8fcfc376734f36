"""One HTML file that shows what the components of a model learned: no network, no server."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..conversion.calibration import mixer_inputs
from ..model.documents_gma import Documents
from .counts import SIDES
from .tables import Analysis
from .theory import affinity_properties, gradient_error, observed_sensitivity, one_side, routing_sensitivity


SHOWN_TOKENS = 256  # of the text, at most: the figures of the theory grow with their square
TOP = 5  # responsibilities of a token that are kept
SENTENCE_TOKENS, SENTENCES = 48, 6  # whose affinity is shown
WORD_SENTENCE_TOKENS = 240  # of a model of characters, whose affinity is shown by words
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
MOVE = 0.1  # how far queries and keys are moved, over their mean length


def write_report(analysis: Analysis, text: str, path: str | Path, *, name: str, shown_tokens: int) -> None:
    """
    Write the report.

    Args:
        analysis: of a corpus.
        text: whose first tokens are shown with their components.
        path: of the HTML file.
        name: of the checkpoint.
        shown_tokens: how many tokens, at most, and never more than `SHOWN_TOKENS`.

    Raises:
        ValueError: if the text holds no token.
    """
    data = report_data(analysis, text, name, min(shown_tokens, SHOWN_TOKENS))
    data = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    page = template.replace("/*DATA*/null", data.replace("<", "\\u003c"))  # no tag may end the script
    Path(path).write_text(page, encoding="utf-8")


@torch.no_grad()
def report_data(analysis: Analysis, text: str, name: str, shown_tokens: int) -> dict[str, Any]:
    """What the page shows, as JSON."""
    counts, model = analysis.counts, analysis.model
    beginning = text[: 20 * shown_tokens]  # a token rarely has so many characters
    if not beginning.strip():
        raise ValueError("`text` must hold some text at its beginning, but there is none.")
    batch = _read(analysis, beginning, shown_tokens)
    inputs = mixer_inputs(model, counts.layer_indices, [batch])
    texts = [analysis.texts[index] for index in batch["input_ids"][0].tolist()]
    words = words_of(texts) if is_of_characters(texts) else None
    attention_of = {index: model.base_model.layers[index].attention for index in counts.layer_indices}
    layers = [_layer(attention_of[index], *inputs[index][0], words) for index in counts.layer_indices]
    by_words = {}
    if words is not None:
        by_words["words"] = _decoded(analysis, batch, words)
        by_words["word_routing"] = [layer["word_routing"] for layer in layers]
    return by_words | {
        "name": name,
        "tokens_read": counts.tokens,
        "layers": counts.layer_indices,
        "heads": counts.heads,
        "components": counts.components,
        "sides": list(SIDES),
        "is_causal": model.config.is_causal,
        "text": texts,
        "routing": [layer["routing"] for layer in layers],
        "map": [layer["map"] for layer in layers],
        "mass": _rounded(counts.mass / counts.tokens, 5),
        "largest": _rounded(counts.largest / counts.tokens, 5),
        "nearest": [[_nearest(side) for side in sides] for sides in analysis.distances],
        "head_figures": _records(analysis.heads),
        "theory": [_theory(attention_of[index], *inputs[index][0]) for index in counts.layer_indices],
        "alignment": _records(analysis.alignment),
        "top_tokens": _by_component(analysis.top_tokens(8), ["text", "count", "lift"]),
        "examples": _by_component(analysis.examples(), ["before", "text", "after", "responsibility"]),
        "sentences": _sentences(analysis, beginning, words is not None),
    }


def is_of_characters(texts: list[str]) -> bool:
    """Return whether the tokens of a text are characters or bytes, so that words are what to look at."""
    return sum(len(text) == 1 for text in texts) > 0.9 * len(texts) > 0


def words_of(texts: list[str]) -> torch.Tensor:
    """Return the number of the word that each token is of, `[T]`; white space belongs to the word before it."""
    starts = [not text.isspace() and (not index or texts[index - 1].isspace()) for index, text in enumerate(texts)]
    return (torch.tensor(starts).cumsum(0) - 1).clamp_min(0)


def _decoded(analysis: Analysis, batch: dict[str, torch.Tensor], words: torch.Tensor) -> list[str]:
    """Return the text of each word."""
    ids = batch["input_ids"][0]
    return [analysis.tokenizer.decode(ids[words == word].tolist()) for word in range(int(words.max()) + 1)]


def _by_words(values: torch.Tensor, words: torch.Tensor, is_mean: bool) -> torch.Tensor:
    """Return the sum or the mean over the tokens of each word, `[..., T, X]` to `[..., W, X]`."""
    members = torch.nn.functional.one_hot(words).to(values.dtype).T.to(values.device)
    return (members / members.sum(1, keepdim=True) if is_mean else members) @ values


def _largest(gamma: torch.Tensor) -> dict[str, Any]:
    """Return the largest responsibilities of `[H, T, K]`, and of which components they are."""
    values, places = gamma.topk(min(TOP, gamma.shape[-1]), dim=-1)  # [H, T, TOP]
    return {"component": places.tolist(), "value": _rounded(values, 4)}


def _layer(
    attention: torch.nn.Module, hidden_states: torch.Tensor, mask: torch.Tensor, words: torch.Tensor | None
) -> dict[str, Any]:
    """Return the largest responsibilities of the shown tokens and words, and a map of tokens and components."""
    routing, by_words, maps = [], [], []
    heads, _ = attention.project(hidden_states, Documents(mask), {})
    gammas = attention(hidden_states, Documents(mask), output_responsibilities=True).responsibilities
    for gamma, vector in zip(gammas, (heads.queries, heads.keys)):
        routing.append(_largest(gamma[0]))
        if words is not None:
            by_words.append(_largest(_by_words(gamma[0], words, is_mean=True)))
        maps.append([_plane(means, x) for means, x in zip(attention.mixture.components().means, vector[0])])
    return {"routing": routing, "word_routing": by_words, "map": maps}


def _theory(attention: torch.nn.Module, hidden_states: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """What the mathematics promises, `[sides][heads]`, of the first tokens, moved by a tenth of their size."""
    heads, _ = attention.project(hidden_states, Documents(mask), {})
    vectors = [x[0, :, :SENTENCE_TOKENS].double() for x in (heads.queries, heads.keys)]
    figures: dict[str, Any] = {"bound": [], "observed": [], "gradient_error": []}
    for side, x in enumerate(vectors):
        mixture, radius = one_side(attention.mixture, side), MOVE * x.norm(dim=-1).mean().item()
        figures["bound"].append(_rounded(routing_sensitivity(mixture, x, radius).mean(-1), 4))
        figures["observed"].append(_rounded(observed_sensitivity(mixture, x, radius).mean(-1), 4))
        figures["gradient_error"].append(gradient_error(mixture, x).tolist())
    weights = attention(hidden_states, Documents(mask), output_attentions=True).affinity[0]
    return figures | {name: _rounded(value, 6) for name, value in affinity_properties(weights).items()}


def _plane(means: torch.Tensor, tokens: torch.Tensor) -> dict[str, Any]:
    """Components and tokens of a head on the two principal axes of the tokens."""
    means, tokens = means.double().cpu(), tokens.double().cpu()
    centre = tokens.mean(0)
    _, sizes, axes = torch.linalg.svd(tokens - centre, full_matrices=False)
    shares = sizes.square() / sizes.square().sum().clamp_min(1e-30)
    axes, shares = axes[:2], shares[:2]
    if len(axes) < 2:  # one token, or one dimension
        axes = torch.cat([axes, torch.zeros(2 - len(axes), axes.shape[1], dtype=axes.dtype)])
    places = {"components": _rounded((means - centre) @ axes.T, 3), "tokens": _rounded((tokens - centre) @ axes.T, 3)}
    return places | {"variance": _rounded(shares, 3)}  # of the tokens, that each axis holds


def _read(analysis: Analysis, text: str, tokens: int) -> dict[str, torch.Tensor]:
    """A batch of the first so many tokens that the model reads of a text, with those put around it."""
    limit = analysis.model.config.position_limit
    tokens = tokens if limit is None else min(tokens, limit)
    encoded = analysis.tokenizer(text, truncation=True, max_length=tokens, return_tensors="pt", verbose=False)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def first_sentences(text: str) -> list[str]:
    """
    Return the first sentences of a text, real ones first: of six words or more, from a capital letter to a full stop,
    a question mark or an exclamation mark. Headings, and what the beginning of the text has cut off, come last.
    """
    parts = [part.strip() for part in SENTENCE_END.split(text) if part.strip()]
    real = [part for part in parts if len(part.split()) >= 6 and part[0].isupper() and part[-1] in ".!?"]
    return (real + [part for part in parts if part not in real])[:SENTENCES]


def _sentences(analysis: Analysis, text: str, has_words: bool) -> list[dict[str, Any]]:
    """
    Return sentences of a text, each read alone, with the affinity of its tokens, `[layers][heads][N][N]`, and for a
    model of characters that of its words: what the tokens of a word read of all tokens of another, on average.
    """
    return [_sentence(analysis, sentence, has_words) for sentence in first_sentences(text)]


def _sentence(analysis: Analysis, sentence: str, has_words: bool) -> dict[str, Any]:
    """Return one of `_sentences`."""
    batch = _read(analysis, sentence, WORD_SENTENCE_TOKENS if has_words else SENTENCE_TOKENS)
    texts = [analysis.texts[index] for index in batch["input_ids"][0].tolist()]
    words, by_tokens, by_words = words_of(texts), [], []
    for index, ((hidden_states, mask),) in mixer_inputs(
        analysis.model, analysis.counts.layer_indices, [batch]
    ).items():
        attention = analysis.model.base_model.layers[index].attention
        weights = attention(hidden_states, Documents(mask), output_attentions=True).affinity[0]
        by_tokens.append(_rounded(weights[:, :SENTENCE_TOKENS, :SENTENCE_TOKENS], 3))
        if has_words:
            read = _by_words(weights.transpose(-1, -2), words, is_mean=False).transpose(-1, -2)
            by_words.append(_rounded(_by_words(read, words, is_mean=True), 3))
    piece = {"text": texts[:SENTENCE_TOKENS], "affinity": by_tokens}
    return piece | ({"words": _decoded(analysis, batch, words), "word_affinity": by_words} if has_words else {})


def _nearest(distances: torch.Tensor) -> list[list]:
    """Of each component of each head the nearest other one and its distance, `[H][K][2]`, from `[H, K, K]`."""
    if distances.shape[-1] == 1:
        return [[] for _ in distances]
    others = distances + torch.diag_embed(torch.full(distances.shape[:2], torch.inf, dtype=distances.dtype))
    values, places = others.min(dim=-1)
    return [[[k, round(d, 3)] for k, d in zip(*head)] for head in zip(places.tolist(), values.tolist())]


def _by_component(table: Any, columns: list[str]) -> dict[str, list]:  # noqa: ANN401
    """Rows by "layer/side/head/component", or without the side where the table has none."""
    keys = [name for name in ("layer", "side", "head", "component") if name in table]
    groups: dict[str, list] = {}
    for row in table.to_dict("records"):
        values = [round(row[name], 4) if isinstance(row[name], float) else row[name] for name in columns]
        groups.setdefault("/".join(str(row[key]) for key in keys), []).append(values)
    return groups


def _records(table: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return json.loads(table.round(5).to_json(orient="records"))


def _rounded(values: np.ndarray | torch.Tensor, digits: int) -> list:
    array = values.detach().double().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.round(array, digits).tolist()
