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
SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n+")
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
    attention_of = {index: model.base_model.layers[index].attention for index in counts.layer_indices}
    layers = [_layer(attention_of[index], *inputs[index][0]) for index in counts.layer_indices]
    return {
        "name": name,
        "tokens_read": counts.tokens,
        "layers": counts.layer_indices,
        "heads": counts.heads,
        "components": counts.components,
        "sides": list(SIDES),
        "is_causal": model.config.is_causal,
        "text": [analysis.texts[index] for index in batch["input_ids"][0].tolist()],
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
        "sentences": _sentences(analysis, beginning),
    }


def _layer(attention: torch.nn.Module, hidden_states: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """Largest responsibilities of the shown tokens, and a map of tokens and components."""
    routing, maps = [], []
    heads, _ = attention.project(hidden_states, Documents(mask), {})
    gammas = attention(hidden_states, Documents(mask), output_responsibilities=True).responsibilities
    for gamma, vector in zip(gammas, (heads.queries, heads.keys)):
        values, places = gamma[0].topk(min(TOP, gamma.shape[-1]), dim=-1)  # [H, T, TOP]
        routing.append({"component": places.tolist(), "value": _rounded(values, 4)})
        maps.append([_plane(means, x) for means, x in zip(attention.mixture.components().means, vector[0])])
    return {"routing": routing, "map": maps}


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


def _sentences(analysis: Analysis, text: str) -> list[dict[str, Any]]:
    """The first sentences of a text, each read alone, with the affinity of its tokens, `[layers][heads][N][N]`."""
    pieces = []
    for sentence in [part for part in SENTENCE_END.split(text) if part.strip()][:SENTENCES]:
        batch = _read(analysis, sentence, SENTENCE_TOKENS)
        affinity = []
        for index, ((hidden_states, mask),) in mixer_inputs(
            analysis.model, analysis.counts.layer_indices, [batch]
        ).items():
            attention = analysis.model.base_model.layers[index].attention
            weights = attention(hidden_states, Documents(mask), output_attentions=True).affinity
            affinity.append(_rounded(weights[0], 3))
        pieces.append({"text": [analysis.texts[id_] for id_ in batch["input_ids"][0].tolist()], "affinity": affinity})
    return pieces


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
