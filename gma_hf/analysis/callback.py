"""Usage of the components while a model trains."""

import logging

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .tables import DEAD_SHARE


logger = logging.getLogger(__name__)


class RoutingCallback(TrainerCallback):
    """
    Log the use of the components at each evaluation, to whatever `report_to` names.

    For each GMA layer it logs how many components are in use (`routing/layer_0/effective_components`), the mean
    entropy of a token's responsibilities in nats (`.../token_entropy`) and the dead components of all heads
    (`.../dead_components`). Queries and keys count together, on the first batch that is evaluated, of the first set if
    there are several. It warns where a head reads or writes with hardly more than one component: less than `1 +
    collapse * (K - 1)` effective ones. It does not change what is trained.

    Args:
        trainer: the `Trainer` whose logs are used; `trainer.add_callback(RoutingCallback(trainer))`.
        collapse: share of the components beyond the first, below which a head counts as collapsed.
    """

    def __init__(self, trainer, collapse: float = 0.05):  # noqa: ANN001
        if not 0 <= collapse <= 1:
            raise ValueError(f"`collapse` must be between 0 and 1, but it is {collapse}.")
        self.trainer = trainer
        self.collapse = collapse
        self.step = -1  # of the last figures

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Says so where nothing will be logged."""
        if args.eval_strategy == "no":
            logger.warning("RoutingCallback logs at evaluations, and `eval_strategy` is 'no'.")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: DataLoader,
        **kwargs: object,
    ) -> None:
        """Measures and logs, once per step."""
        if state.global_step == self.step:
            return
        self.step, figures = state.global_step, {}
        for layer, gamma in responsibilities_of_a_batch(self.trainer, eval_dataloader).items():
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
def responsibilities_of_a_batch(trainer, batches: DataLoader) -> dict[int, torch.Tensor]:  # noqa: ANN001
    """Those of queries and keys, `[2, T, H, K]`, of each GMA layer, for the T real tokens of the first batch."""
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed from the generator that training goes on with
        batch = trainer._prepare_inputs(next(iter(batches)))
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
