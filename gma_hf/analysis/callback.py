"""Usage of the components while a model trains."""

import logging

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .tables import DEAD_SHARE


logger = logging.getLogger(__name__)


class RoutingCallback(TrainerCallback):
    """
    Logs, at each evaluation, to whatever `report_to` names: per GMA layer the effective number of components
    (`routing/layer_0/effective_components`), the mean entropy of a token's responsibilities in nats
    (`.../token_entropy`) and the dead components of all heads (`.../dead_components`), queries and keys together, on
    one batch of the evaluation data (the first set, if there are several). Warns where a head reads or writes with
    hardly more than one component: less than `1 + collapse * (K - 1)` effective ones.

    Args:
        trainer: the `Trainer` whose evaluation data and logs are used;
            `trainer.add_callback(RoutingCallback(trainer))`.
        collapse: share of the components beyond the first, below which a head counts as collapsed.
    """

    def __init__(self, trainer, collapse: float = 0.05):  # noqa: ANN001
        if not 0 <= collapse <= 1:
            raise ValueError(f"`collapse` must be between 0 and 1, but it is {collapse}.")
        self.trainer = trainer
        self.collapse = collapse

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measures and logs."""
        figures = {}
        for layer, gamma in responsibilities_of_a_batch(self.trainer).items():
            mean = gamma.mean(1)  # [2, H, K]
            effective, components = torch.special.entr(mean).sum(-1).exp(), mean.shape[-1]
            figures[f"routing/layer_{layer}/effective_components"] = effective.mean().item()
            figures[f"routing/layer_{layer}/token_entropy"] = torch.special.entr(gamma).sum(-1).mean().item()
            figures[f"routing/layer_{layer}/dead_components"] = (mean < DEAD_SHARE / components).sum().item()
            if (fewest := effective.min().item()) < 1 + self.collapse * (components - 1):
                message = "At step %d a head of layer %d uses %.1f of %d components."
                logger.warning(message, state.global_step, layer, fewest, components)
        self.trainer.log(figures)


@torch.no_grad()
def responsibilities_of_a_batch(trainer) -> dict[int, torch.Tensor]:  # noqa: ANN001
    """Those of queries and keys, `[2, T, H, K]`, of each GMA layer, for the T real tokens of a batch."""
    names = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else [None]
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader(names[0]))))
    was_training = trainer.model.training
    output = trainer.model.eval()(**batch, output_responsibilities=True)
    trainer.model.train(was_training)
    rows = batch["input_ids"].reshape(-1, batch["input_ids"].shape[-1])  # several choices are rows of their own
    mask = batch.get("attention_mask", torch.ones_like(rows)).reshape(rows.shape).bool()
    layer_types = trainer.accelerator.unwrap_model(trainer.model).config.layer_types
    indices = [index for index, kind in enumerate(layer_types) if kind == "gma"]
    return {
        index: torch.stack([side.transpose(1, 2)[mask] for side in sides]).float()
        for index, sides in zip(indices, output.responsibilities)
    }
