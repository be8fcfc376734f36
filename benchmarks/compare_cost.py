"""What a training step of each mixer takes, in time and in memory, on the machine at hand."""

import statistics
import time

import torch
from transformers import PreTrainedModel

from .memory import PeakMemory


Costs = dict[str, dict[str, float]]  # of each mixer: "milliseconds" and "mebibytes" of a step


class TrainingStep:
    """Forward, backward and optimizer of a model, as a call with a batch."""

    def __init__(self, model: PreTrainedModel):
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self.model = model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        self.model(**{name: tensor.to(self.device) for name, tensor in batch.items()}).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def measure(models: dict[str, PreTrainedModel], batches: list[dict[str, torch.Tensor]]) -> Costs:
    """
    Return the median time of a step, the models in turns with each batch, so that whatever else the machine does falls
    on all of them; and the peak of memory above what model and optimizer have.

    Args:
        models: by the name of the mixer.
        batches: of one training step each.
    """
    steps = {mixer: TrainingStep(model) for mixer, model in models.items()}
    seconds, memory = {mixer: [] for mixer in models}, {}
    for step in steps.values():  # makes the states of the optimizer, and whatever is made once
        step(batches[0])
    for mixer, step in steps.items():
        with PeakMemory() as peak:
            step(batches[0])
        memory[mixer] = peak.mebibytes
    for batch in batches:
        for mixer, step in steps.items():
            start = time.perf_counter()
            step(batch)
            seconds[mixer].append(time.perf_counter() - start)
    return {
        mixer: {"milliseconds": 1000 * statistics.median(seconds[mixer]), "mebibytes": memory[mixer]}
        for mixer in models
    }
