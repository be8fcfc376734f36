"""
Mean loss per token and its exponential, over texts of unequal length. A metric module of `evaluate` that needs no Hub:
`evaluate.load(FOLDER)`.
"""

import datasets
import evaluate
import numpy as np


class TokenLoss(evaluate.Metric):
    """
    `predictions`: the summed loss of a sequence in nats; `references`: of how many tokens. To `loss` (nats per token),
    `perplexity` and `tokens`.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self.__doc__,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        loss = float(np.sum(predictions) / np.sum(references))
        return {"loss": loss, "perplexity": float(np.exp(loss)), "tokens": int(np.sum(references))}
