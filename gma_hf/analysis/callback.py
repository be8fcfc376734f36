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
    one batch of the evaluation data. Warns where a layer's heads use, on average, less than `collapse` of their
    components.

    Args:
        trainer: the `Trainer` whose evaluation data and logs are used;
            `trainer.add_callback(RoutingCallback(trainer))`.
        collapse: share of the components below which a layer counts as collapsed.
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
        figures = routing_figures(self.trainer)
        self.trainer.log(figures)
        components = self.trainer.accelerator.unwrap_model(self.trainer.model).config.num_components
        for name, value in figures.items():
            if name.endswith("effective_components") and value < self.collapse * components:
                layer = name.split("/")[1]
                logger.warning(
                    "At step %d %s uses %.1f of %d components.", state.global_step, layer, value, components
                )


@torch.no_grad()
def routing_figures(trainer) -> dict[str, float]:  # noqa: ANN001
    """See `RoutingCallback`; the first batch of the evaluation data."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    was_training = model.training
    output = model.base_model.eval()(**inputs, output_responsibilities=True, use_cache=False)
    model.train(was_training)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    indices = [index for index, kind in enumerate(model.config.layer_types) if kind == "gma"]
    figures = {}
    for index, sides in zip(indices, output.responsibilities):
        gamma = torch.stack([side.transpose(1, 2)[mask] for side in sides]).float()  # [2, T, H, K]
        mean = gamma.mean(1)
        effective = torch.special.entr(mean).sum(-1).exp().mean()
        figures[f"routing/layer_{index}/effective_components"] = effective.item()
        figures[f"routing/layer_{index}/token_entropy"] = torch.special.entr(gamma).sum(-1).mean().item()
        figures[f"routing/layer_{index}/dead_components"] = (mean < DEAD_SHARE / mean.shape[-1]).sum().item()
    return figures
