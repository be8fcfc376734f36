"""
Run by test_parts in each of several processes: of each case, a model on its part of the inputs, and the gradients of
it; the first process writes what the parts give together to a file.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

import gma_hf  # noqa: F401  (makes the Auto classes know the model type "gma")
from gma_hf.model.compat_gma import CACHE_NAME
from gma_hf.parallel import shard_batch, whole_cache


def objective(logits, loss, weights):
    """The loss; in float64, where Transformers' loss is float32, a random combination of the logits."""
    return loss if logits.dtype == torch.float32 else (logits * weights).sum()


def give(case: dict, folder: Path) -> dict[str, torch.Tensor]:
    auto_class = getattr(transformers, case["auto_class"])
    model = auto_class.from_pretrained(folder / case["model"]).to(case["dtype"]).train()
    if case["checkpointing"]:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    batch = shard_batch(model, case["inputs"])
    part = batch["sequence_part"]
    output = model(**batch)
    mine = slice(part.start, part.stop)
    objective(output.logits, output.loss, case["weights"][:, mine].to(case["dtype"]) * len(part.lengths)).backward()
    given = {"loss": output.loss.detach(), **{f"gradient of {name}": x.grad for name, x in model.named_parameters()}}
    for x in given.values():
        dist.all_reduce(x)
        x /= len(part.lengths)
    given["logits"] = part.gather_tokens(output.logits.detach())
    if model.can_generate() and not case["checkpointing"]:
        with torch.no_grad():
            cache = whole_cache(model(**batch, use_cache=True)[CACHE_NAME], part)
        for index, layer in enumerate(cache.layers):
            given |= {f"{name} of layer {index}": x for name, x in layer.tensors.items()}
        assert int(cache.get_seq_length()) == case["inputs"]["input_ids"].shape[1]
    return given


def refusal(folder: Path) -> str:
    """What is said of a batch whose embeddings are other ones on each rank."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "causal")
    embeddings = torch.full((1, 9, model.config.hidden_size), float(dist.get_rank()))
    try:
        shard_batch(model, {"inputs_embeds": embeddings})
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    refused = refusal(folder)
    given = [give(case, folder) for case in torch.load(folder / "cases.pt")]
    if dist.get_rank() == 0:
        torch.save(given, folder / "given.pt")
        (folder / "refused.txt").write_text(refused)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # torch 2.13 aborts now and then while the interpreter ends, after all is done
