"""
Run by test_processes in each of two processes: a checkpoint by its tensor parallel plan, and what it gives; the first
process writes that to a file.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

import gma_hf  # noqa: F401  (makes the Auto classes know the model type "gma")


PROMPT = torch.arange(1, 22)[None]


def outputs(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a prompt, and the most probable tokens: those that greedy decoding gives, or at each place."""
    with torch.no_grad():
        logits = model(PROMPT).logits
        if not model.can_generate():
            return logits, logits.argmax(dim=-1)
        return logits, model.generate(PROMPT, max_new_tokens=8, do_sample=False)


def main(folder: Path, head: str) -> None:
    auto_class = getattr(transformers, f"AutoModelFor{head}")
    model = auto_class.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto"))
    up = model.model.layers[0].mlp.up_proj.weight
    assert up.to_local().shape[0] * 2 == up.shape[0] == model.config.intermediate_size
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert table.to_local().shape[0] < table.shape[0] == model.config.vocab_size
    assert not any(isinstance(x, DTensor) for layer in model.model.layers for x in layer.attention.parameters())
    logits, tokens = outputs(model)
    if dist.get_rank() == 0:
        torch.save({"logits": logits, "tokens": tokens}, folder / "outputs.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
