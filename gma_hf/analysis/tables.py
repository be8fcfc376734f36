"""What the counts say, as tables: one row per layer, side and head, or per component."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from scipy.special import entr
from scipy.stats import random_table
from sklearn import config_context
from sklearn.metrics import mutual_info_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .counts import SIDES, RoutingCounts
from .labels import FREQUENCY_BANDS, LENGTHS, SURFACE_FORMS, frequency_bands, lengths, surface_forms, token_texts
from .theory import one_side


# A component is dead when it has less than this of an equal share of the mass
DEAD_SHARE = 0.01
SHUFFLES, RENAMINGS = 20, 10
LABELLINGS = ("surface form", "length", "frequency", "position")  # those that are always there


class Analysis:
    """
    What a model's components did over a corpus, as pandas tables. Columns `layer` (as in the model), `side` (query:
    reading, key: writing), `head`, `component` say of what a row is.

    Args:
        model: a GMA model.
        tokenizer: of it.
        counts: over the corpus.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, counts: RoutingCounts):
        self.model = model
        self.tokenizer = tokenizer
        self.counts = counts

    @property
    def mixtures(self) -> list[torch.nn.Module]:
        """The `GaussianMixture` of each GMA layer."""
        layers = self.model.base_model.layers
        return [layers[index].attention.mixture for index in self.counts.layer_indices]

    @cached_property
    def texts(self) -> list[str]:
        """The text of each entry of the vocabulary."""
        return token_texts(self.tokenizer)

    @cached_property
    def distances(self) -> list[list[torch.Tensor]]:
        """Bhattacharyya distances of the components, `[layers][sides]` of `[H, K, K]`; a temperature widens them."""
        mixtures = [[one_side(mixture, side) for side in range(len(SIDES))] for mixture in self.mixtures]
        return [
            [bhattacharyya_distances(of.means, of.variances / of.temperature[:, None, None]) for of in sides]
            for sides in mixtures
        ]

    @cached_property
    def components(self) -> pd.DataFrame:
        """
        Per component: `mass`, its share of all responsibilities; `largest`, the share of tokens where it is the
        largest; `dead`, whether its mass is below a hundredth of an equal share.
        """
        counts = self.counts
        table = self._frame(counts.mass, "mass")
        table["mass"] /= counts.tokens
        table["largest"] = counts.largest.ravel() / counts.tokens
        table["dead"] = table["mass"] < DEAD_SHARE / counts.components
        return table

    @cached_property
    def heads(self) -> pd.DataFrame:
        """
        Per head and side: `effective_components`, the exponential of the entropy of the mean responsibilities;
        `dead_components`; `token_entropy`, the mean entropy of a token's responsibilities (nats); `agreement`, the
        mean probability that query and key of a token go to the same component, and `agreement_by_chance`, that of a
        query and a key of any two tokens; `distance`, the mean Bhattacharyya distance between two components (their
        overlap: 0 for equal ones; a temperature widens them), and `nearest_distance`, that to the nearest one, on
        average.
        """
        counts = self.counts
        shares = counts.mass / counts.mass.sum(-1, keepdims=True)
        table = self._frame(np.exp(_entropy(counts.mass))[..., None], "effective_components").drop(columns="component")
        dead = self.components.groupby(["layer", "side", "head"], sort=False)["dead"].sum()
        table["dead_components"] = dead.to_numpy()
        table["token_entropy"] = counts.entropy.ravel() / counts.tokens
        both_sides = np.repeat(counts.agreement[:, None], len(SIDES), axis=1)
        table["agreement"] = both_sides.ravel() / counts.tokens
        chance = (shares[:, 0] * shares[:, 1]).sum(-1)
        table["agreement_by_chance"] = np.repeat(chance[:, None], len(SIDES), axis=1).ravel()
        distances = [of_side for sides in self.distances for of_side in sides]
        table["distance"] = np.concatenate([_mean_distance(distance) for distance in distances])
        table["nearest_distance"] = np.concatenate([_nearest_distance(distance) for distance in distances])
        return table

    @cached_property
    def alignment(self) -> pd.DataFrame:
        """
        Per labelling, layer, side and head, how the largest component agrees with the label of a token: normalised and
        adjusted mutual information (`nmi`, `ami`), `homogeneity`, `completeness`, `v_measure` (which is `nmi` by
        another name: both divide by the mean of the entropies), and what `nmi` is when the labels are shuffled,
        `control_nmi` with the standard deviation `control_std` over 20 shuffles of the tokens (tables with the same
        margins). What `ami` takes off as chance is the mean of these.

        A category that depends on the token alone agrees with any routing that does so too. For surface form and
        length, `renamed_nmi` is what `nmi` is when the categories are shuffled among tokens that are about as frequent
        (by powers of two, so that a category keeps about its share of the text), with `renamed_std`: what is above it
        says that components follow the category and not just the token. Empty for other labels.
        """
        with config_context(skip_parameter_validation=True):  # takes longer than a small table
            return pd.DataFrame(self._alignment_rows())

    def _alignment_rows(self) -> Iterator[dict]:
        renamed = self._renamed()
        for labelling, table in self.contingencies().items():
            for layer, side, head in np.ndindex(table.shape[:3]):
                place = {"layer": self.counts.layer_indices[layer], "side": SIDES[side], "head": head}
                row = {"labelling": labelling, **place, **alignment(table[layer, side, head])}
                draws = [normalised_information(draw[layer, side, head]) for draw in renamed.get(labelling, [])]
                mean, std = (np.mean(draws), np.std(draws)) if draws else (np.nan, np.nan)
                yield {**row, "renamed_nmi": mean, "renamed_std": std}

    def _renamed(self) -> dict[str, list[np.ndarray]]:
        """Contingency tables of surface form and length, shuffled among tokens that are about as frequent."""
        generator, counts = np.random.default_rng(0), self.counts.token_counts
        octaves = np.where(counts > 0, np.log2(np.maximum(counts, 1)).astype(int), -1)
        alike = [np.flatnonzero(octaves == octave) for octave in range(octaves.max() + 1)]
        draws = {}
        for name, categories in self._categories_of_tokens().items():
            if name == "frequency":
                continue
            draws[name] = []
            for _ in range(RENAMINGS):
                shuffled = categories.copy()
                for tokens in alike:
                    shuffled[tokens] = generator.permutation(categories[tokens])
                draws[name].append(self._contingency(name, shuffled))
        return draws

    def categories(self) -> dict[str, list[str]]:
        """The categories of each labelling."""
        by_token = {"surface form": SURFACE_FORMS, "length": LENGTHS, "frequency": FREQUENCY_BANDS}
        return by_token | {name: list(of.categories) for name, of in self.counts.labels.items()}

    def contingencies(self) -> dict[str, np.ndarray]:
        """Tokens by category and largest component, `[layers, sides, H, categories, K]`, of each labelling."""
        by_token = {name: self._contingency(name, of) for name, of in self._categories_of_tokens().items()}
        return by_token | {name: of.counts for name, of in self.counts.labels.items()}

    def _categories_of_tokens(self) -> dict[str, np.ndarray]:
        """The category of each entry of the vocabulary, for the labellings that depend on it alone."""
        no_tokens = self.counts.vocabulary - len(self.texts)  # entries of the model that the tokenizer does not have
        other = np.full(no_tokens, SURFACE_FORMS.index("other"))
        return {
            "surface form": np.concatenate([surface_forms(self.tokenizer, self.texts), other]),
            "length": np.concatenate([lengths(self.texts), np.zeros(no_tokens, dtype=np.int64)]),
            "frequency": frequency_bands(self.counts.token_counts),
        }

    def _contingency(self, name: str, categories: np.ndarray) -> np.ndarray:
        by_token = self.tokens_by_component
        shape = (*self.counts.entropy.shape, len(self.categories()[name]), self.counts.components)
        place = tuple(by_token[key].to_numpy() for key in ("layer_place", "side_place", "head"))
        index = np.ravel_multi_index((*place, categories[by_token["token"]], by_token["component"].to_numpy()), shape)
        counts = np.bincount(index, weights=by_token["count"].to_numpy(), minlength=np.prod(shape))
        return counts.astype(np.int64).reshape(shape)

    @cached_property
    def tokens_by_component(self) -> pd.DataFrame:
        """How often (`count`) a component was the largest for a token id, where it ever was."""
        counts = self.counts.tokens_by_component()
        shape = (*self.counts.entropy.shape, self.counts.vocabulary, self.counts.components)
        names = ("layer_place", "side_place", "head", "token", "component")
        return pd.DataFrame(dict(zip(names, np.unravel_index(counts.index, shape)))).assign(count=counts.to_numpy())

    def top_tokens(self, number: int = 10) -> pd.DataFrame:
        """
        Per component the tokens that it is the largest for most often: `token`, its `text`, `count`, and `lift`, how
        many times more often than for all tokens.
        """
        table = self.tokens_by_component.sort_values("count", ascending=False, kind="stable")
        keys = ["layer_place", "side_place", "head", "component"]
        table = table.groupby(keys, sort=True).head(number).sort_values(keys, kind="stable")
        table.insert(0, "layer", np.array(self.counts.layer_indices)[table["layer_place"]])
        table.insert(1, "side", np.array(SIDES)[table["side_place"]])
        largest = self.counts.largest[tuple(table[name] for name in keys)]
        share = self.counts.token_counts[table["token"]] / self.counts.tokens
        table["lift"] = table["count"] / largest / share
        table["text"] = [self._text(token) for token in table["token"]]
        return table.drop(columns=["layer_place", "side_place"]).reset_index(drop=True)

    def examples(self) -> pd.DataFrame:
        """
        Per component the tokens with the largest responsibilities as keys, in their context: `before`, `text`,
        `after`, `responsibility`.
        """
        counts, rows = self.counts, []
        for layer, head, component, rank in np.argwhere(counts.examples > 0):
            window = counts.contexts[layer, head, component, rank]
            middle = len(window) // 2
            before, text, after = (
                "".join(self._text(token) for token in part if token >= 0)
                for part in (window[:middle], window[middle : middle + 1], window[middle + 1 :])
            )
            place = {"layer": counts.layer_indices[layer], "head": head, "component": component}
            gamma = counts.examples[layer, head, component, rank]
            rows.append({**place, "before": before, "text": text, "after": after, "responsibility": gamma})
        return pd.DataFrame(rows)

    def _text(self, token: int) -> str:
        return self.texts[token] if token < len(self.texts) else f"[{token}]"

    def _frame(self, values: np.ndarray, name: str) -> pd.DataFrame:
        """`[layers, sides, H, K]` as one row per entry."""
        layers, sides, heads, components = np.indices(values.shape).reshape(4, -1)
        place = {"layer": np.array(self.counts.layer_indices)[layers], "side": np.array(SIDES)[sides]}
        return pd.DataFrame({**place, "head": heads, "component": components, name: values.ravel()})


def alignment(contingency: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Agreement of two labellings of the same tokens by their contingency table `[categories, K]`, see `Analysis`."""
    contingency = contingency[contingency.sum(1) > 0][:, contingency.sum(0) > 0]
    margins = contingency.sum(1), contingency.sum(0)
    entropies = [_entropy(margin) for margin in margins]
    information = mutual_info_score(None, None, contingency=contingency)
    shuffled = [0.0]
    if min(contingency.shape) > 1:
        draws = random_table(*margins).rvs(SHUFFLES, method="patefield", random_state=seed)
        shuffled = [mutual_info_score(None, None, contingency=draw) for draw in draws]
    mean, expected = np.mean(entropies), np.mean(shuffled)
    result = {
        "nmi": _ratio(information, mean),
        "ami": _ratio(information - expected, mean - expected),
        "homogeneity": _ratio(information, entropies[0]),
        "completeness": _ratio(information, entropies[1]),
    }
    result["v_measure"] = result["nmi"]
    return result | {"control_nmi": _ratio(expected, mean), "control_std": _ratio(np.std(shuffled), mean)}


def normalised_information(contingency: np.ndarray) -> float:
    """Mutual information over the mean of the two entropies."""
    information = mutual_info_score(None, None, contingency=contingency[contingency.sum(1) > 0])
    return _ratio(information, np.mean([_entropy(contingency.sum(1)), _entropy(contingency.sum(0))]))


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Of the shares along the last axis, in nats."""
    return entr(counts / counts.sum(-1, keepdims=True)).sum(-1)


def _ratio(part: float, whole: float) -> float:
    """0 where there is nothing to agree about."""
    return float(part / whole) if whole > 1e-12 else 0.0


def bhattacharyya_distances(means: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """
    Between the components of each head: `1/8 (mu_k - mu_l)^2 / s + 1/2 log(s / (sigma_k sigma_l))` summed over the
    dimensions, with `s = (sigma_k^2 + sigma_l^2) / 2`.

    Args:
        means, variances: `[heads, K, d_r]`.

    Returns:
        `[heads, K, K]`, float64, 0 on the diagonal.
    """
    means, variances = means.detach().double().cpu(), variances.detach().double().cpu()
    between = (variances[:, :, None] + variances[:, None]) / 2
    moved = (means[:, :, None] - means[:, None]).square() / between / 8
    spread = (between.log() - (variances.log()[:, :, None] + variances.log()[:, None]) / 2) / 2
    return (moved + spread).sum(-1)


def _mean_distance(distances: torch.Tensor) -> np.ndarray:
    components = distances.shape[-1]
    return (distances.sum(dim=(1, 2)) / max(components * (components - 1), 1)).numpy()


def _nearest_distance(distances: torch.Tensor) -> np.ndarray:
    if distances.shape[-1] == 1:
        return np.zeros(len(distances))
    return (distances + torch.diag_embed(torch.full(distances.shape[:2], torch.inf))).amin(-1).mean(-1).numpy()
