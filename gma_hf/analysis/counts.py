"""What is counted while a corpus goes by: sums whose size does not depend on how much has been read."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch


SIDES = ("query", "key")
EXAMPLES, CONTEXT = 3, 12  # kept per component: so many, with so many tokens on each side
PENDING = 2_000_000  # counts of tokens by component that wait to be added up


@dataclass
class LabelCounts:
    """How often a component is the largest for tokens of a category, which are found as they come."""

    categories: dict[str, int] = field(default_factory=dict)
    counts: np.ndarray | None = None  # [layers, sides, heads, categories, K]

    def index(self, labels: list[str]) -> np.ndarray:
        """Of each label."""
        return np.array([self.categories.setdefault(label, len(self.categories)) for label in labels], dtype=np.int64)


@dataclass
class RoutingCounts:
    """
    Sums over tokens, by layer, side (query, key), head and component. Add batches by `add`.

    Args:
        layers, heads, components: of the model.
        layer_indices: which layers of the model these are.
        vocabulary: number of token ids.
    """

    layers: int
    heads: int
    components: int
    layer_indices: list[int]
    vocabulary: int

    def __post_init__(self) -> None:
        shape = (self.layers, len(SIDES), self.heads)
        self.tokens = 0
        self.mass = np.zeros((*shape, self.components))
        self.largest = np.zeros((*shape, self.components), dtype=np.int64)
        self.entropy = np.zeros(shape)
        self.agreement = np.zeros((self.layers, self.heads))
        self.token_counts = np.zeros(self.vocabulary, dtype=np.int64)
        self.labels: dict[str, LabelCounts] = {}
        self.examples = np.zeros((self.layers, self.heads, self.components, EXAMPLES))  # responsibilities of keys
        self.contexts = np.full((*self.examples.shape, 2 * CONTEXT + 1), -1, dtype=np.int64)  # token ids around them
        self._by_token, self._pending, self._waiting = pd.Series(dtype=np.int64), [], 0

    def add(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        responsibilities: tuple[tuple[torch.Tensor, torch.Tensor], ...],
        labels: dict[str, np.ndarray],
    ) -> None:
        """
        Args:
            tokens: `[B, N]`.
            mask: `[B, N]`, True at tokens that count.
            responsibilities: per layer of queries and keys, `[B, H, N, K]`.
            labels: by name, of each token that counts, indices into the categories of `labels`.
        """
        ids = tokens[mask].numpy()
        self.tokens += len(ids)
        self.token_counts += np.bincount(ids, minlength=self.vocabulary)
        windows = _windows(tokens, mask)
        for layer, sides in enumerate(responsibilities):
            gammas = [side.transpose(1, 2)[mask].float() for side in sides]  # [T, H, K]
            self.agreement[layer] += (gammas[0] * gammas[1]).sum(dim=(0, 2)).numpy()
            self._keep_examples(layer, gammas[1], windows)
            for side, gamma in enumerate(gammas):
                self._add_side(layer, side, gamma, ids, labels)
        if self._waiting > PENDING:
            self.tokens_by_component()

    def _add_side(self, layer: int, side: int, gamma: torch.Tensor, ids: np.ndarray, labels: dict) -> None:
        self.mass[layer, side] += gamma.double().sum(0).numpy()
        self.entropy[layer, side] += torch.special.entr(gamma).double().sum(dim=(0, 2)).numpy()
        largest = gamma.argmax(-1).numpy()
        for head in range(self.heads):
            chosen = largest[:, head]
            self.largest[layer, side, head] += np.bincount(chosen, minlength=self.components)
            place = (layer * len(SIDES) + side) * self.heads + head
            pairs, counts = np.unique(ids * self.components + chosen, return_counts=True)
            self._pending.append((place * self.vocabulary * self.components + pairs, counts))
            self._waiting += len(pairs)
            for name, categories in labels.items():
                self._add_labels(name, (layer, side, head), categories, chosen)

    def _add_labels(self, name: str, place: tuple[int, int, int], categories: np.ndarray, chosen: np.ndarray) -> None:
        of = self.labels[name]
        known = 0 if of.counts is None else of.counts.shape[3]
        if known < len(of.categories):
            grown = np.zeros((*self.entropy.shape, len(of.categories), self.components), dtype=np.int64)
            if of.counts is not None:
                grown[:, :, :, :known] = of.counts
            of.counts = grown
        pairs = np.bincount(categories * self.components + chosen, minlength=of.counts[place].size)
        of.counts[place] += pairs.reshape(-1, self.components)

    def tokens_by_component(self) -> pd.Series:
        """
        How often a component was the largest for a token, by `((layer * 2 + side) * H + head) * V * K + token * K +
        component`, where that is not never.
        """
        if self._pending:
            index, counts = (np.concatenate(parts) for parts in zip(*self._pending))
            index = np.concatenate([self._by_token.index.to_numpy(dtype=np.int64), index])
            counts = np.concatenate([self._by_token.to_numpy(dtype=np.int64), counts])
            self._by_token = pd.Series(counts, index=index).groupby(level=0).sum()
            self._pending, self._waiting = [], 0
        return self._by_token

    def _keep_examples(self, layer: int, gamma: torch.Tensor, windows: np.ndarray) -> None:
        values, places = gamma.topk(min(EXAMPLES, len(gamma)), dim=0)  # [E, H, K]
        values = np.concatenate([self.examples[layer], values.permute(1, 2, 0).numpy()], axis=-1)
        contexts = np.concatenate([self.contexts[layer], windows[places.permute(1, 2, 0).numpy()]], axis=2)
        best = np.argsort(-values, axis=-1, kind="stable")[..., :EXAMPLES]
        self.examples[layer] = np.take_along_axis(values, best, axis=-1)
        self.contexts[layer] = np.take_along_axis(contexts, best[..., None], axis=2)


def _windows(tokens: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Token ids around each token that counts, -1 where there is none, `[T, 2 CONTEXT + 1]`."""
    known = torch.where(mask, tokens, -1)
    padded = torch.nn.functional.pad(known, (CONTEXT, CONTEXT), value=-1)
    return padded.unfold(1, 2 * CONTEXT + 1, 1)[mask].numpy()
