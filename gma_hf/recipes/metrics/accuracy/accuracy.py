"""Share of predictions that are right. A metric module of `evaluate` that needs no Hub: `evaluate.load(FOLDER)`."""

import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    """`predictions` and `references`, an integer each per example, to `accuracy`, between 0 and 1."""

    def _info(self) -> evaluate.MetricInfo:
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self.__doc__,
            features=datasets.Features({"predictions": integer, "references": integer}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
