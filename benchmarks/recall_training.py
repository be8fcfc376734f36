"""How `recall.py` trains a network, by a plain loop over fresh batches, and how it asks it."""

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .recall_data import NO_LABEL, Batch, Needle, Recall


WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.98)
CURVE_POINTS = 20
HELD_OUT_SEED = 2**40  # apart from the seeds of trainings
TOKENS_AT_ONCE = 2**14  # of an evaluation


def answers(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits where something is asked, `[questions, vocabulary]`, and the labels there."""
    tokens, labels = batch
    asked = labels != NO_LABEL
    hidden = model.base_model(tokens, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden[asked]), labels[asked]


def parameter_groups(model: nn.Module, learning_rate: float, mixture_rate: float) -> list[dict]:
    """
    Return what AdamW trains: matrices with weight decay, biases and norms without it, as Trainer does. Where
    `mixture_rate` is not 1, the components of GMA have so many times the rate, and no weight decay.
    """
    decayed, others, mixture = [], [], []
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if mixture_rate != 1 and "mixture" in parts:
            mixture.append(parameter)
        elif parts[-1] == "bias" or "norm" in parts[-2]:
            others.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "lr": learning_rate, "weight_decay": WEIGHT_DECAY},
        {"params": others, "lr": learning_rate, "weight_decay": 0.0},
        {"params": mixture, "lr": learning_rate * mixture_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def schedule(step: int, warmup_steps: int, max_steps: int) -> float:
    """Return the factor on the rate in a step, counted from 0: a warm-up, and a cosine to 0 after the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, max_steps - warmup_steps)))


def train(
    model: PreTrainedModel,
    task: Recall | Needle,
    pairs: int,
    length: int,
    *,
    batch_size: int,
    learning_rate: float,
    mixture_rate: float,
    warmup_steps: int,
    max_steps: int,
    seed: int,
) -> dict:
    """
    Train a network on fresh batches.

    Returns:
        `curve`: by step, loss and accuracy on the batches since the point before, which nothing was trained on yet;
        `seconds` of the whole.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate, mixture_rate), betas=BETAS, fused=True)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, warmup_steps, max_steps))
    parameters = list(model.parameters())
    curve, losses, right = [], [], []
    start = time.perf_counter()
    model.train()
    for step in range(1, max_steps + 1):
        logits, labels = answers(model, task.batch(batch_size, pairs, length, generator))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
        losses.append(loss.detach())
        right.append((logits.detach().argmax(dim=-1) == labels).float().mean())
        if step == max_steps or step % max(1, max_steps // CURVE_POINTS) == 0:
            point = {"step": step, "loss": torch.stack(losses).mean().item()}
            curve.append(point | {"accuracy": torch.stack(right).mean().item()})
            losses, right = [], []
    return {"curve": curve, "seconds": time.perf_counter() - start}


@torch.no_grad()
def ask(model: PreTrainedModel, task: Recall | Needle, pairs: int, length: int, examples: int) -> dict:
    """Return the share of right answers, `accuracy`, and the loss, on so many rows, which are always the same."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    model.eval()
    loss, right, asked = 0.0, 0, 0
    at_once = max(1, min(examples, TOKENS_AT_ONCE // length))
    for first in range(0, examples, at_once):
        rows = min(at_once, examples - first)
        logits, labels = answers(model, task.batch(rows, pairs, length, generator, held_out=True))
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += (logits.argmax(dim=-1) == labels).sum().item()
        asked += len(labels)
    return {"pairs": pairs, "length": length, "examples": examples, "loss": loss / asked, "accuracy": right / asked}
