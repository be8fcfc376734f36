"""Model card of a distilled model: what it is, how near to its source each stage brought it, and the command."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Template
from transformers import PreTrainedModel, TrainingArguments

from ..conversion.distillation import Distillation
from ..files import whole_file
from ..hub.encoder_card import encoder_card
from .running import train_extra
from .texts import DataArguments


with train_extra():
    from matplotlib.figure import Figure


PLOT = "distillation.png"
DESCRIPTION = """\
{{ source }}, converted to Gaussian Mixture Attention (Huang and Raza, 2026, arXiv:2606.18283) by `gma_hf` and
distilled{{ stages }}. {{ layers }} of {{ all_layers }} layers are GMA, with {{ components }} components per head;
{{ parameters }} parameters. Use it for what its source is used for, as far as the figures below support that. It was
distilled and measured on texts of at most {{ longest }} tokens."""
USAGE = """```python
from transformers import AutoTokenizer, {{ auto_class }}

# `trust_remote_code` is not needed after `import gma_hf`
tokenizer = AutoTokenizer.from_pretrained("{{ folder }}", trust_remote_code=True)
model = {{ auto_class }}.from_pretrained("{{ folder }}", trust_remote_code=True)
```"""
SECTIONS = """## How near it is to its source

{{ table }}

{{ legend }}

![What each stage recovered]({{ plot }})

Error of each GMA layer when it reads the source's hidden states: the mean squared difference from the output of the
softmax layer in its place, over the variance of that output. A layer that always gave the mean would have 1.

{{ error_table }}

## How it was made

Data: {{ data }}. Seed: {{ seed }}. Time of the stages: {{ seconds }} seconds on {{ machine }}.

```bash
{{ command }}
```
"""
TEMPLATE = f"""---
{{{{ card_data }}}}
---

# {{{{ name }}}}

{DESCRIPTION}

{USAGE}

{SECTIONS}"""


def write_card(
    folder: Path,
    found: Distillation,
    model: PreTrainedModel,
    args: Any,
    data: DataArguments,
    training: TrainingArguments,
    command: str,
) -> None:
    """
    Write README.md, distillation.png and distillation.json into the folder of a model.

    Args:
        found: the figures before and after each stage.
        model: the distilled model.
        args: arguments of the recipe.
        data: the texts that were read.
        training: arguments of the training.
        command: the command that made the model.
    """
    rows, errors = found.rows, found.layer_errors
    (folder / "distillation.json").write_text(json.dumps({"rows": rows, "layer_errors": errors}, indent=1) + "\n")
    draw(rows, errors).savefig(folder / PLOT, dpi=110)
    source = args.source_name or (Path(args.source).name if Path(args.source).is_dir() else args.source)
    gma_layers = [i for i, kind in enumerate(model.config.layer_types) if kind == "gma"]
    fields = {
        "name": folder.resolve().name,
        "folder": folder,
        "source": f"`{source}`",
        "layers": len(gma_layers),
        "all_layers": model.config.num_hidden_layers,
        "components": model.config.num_components,
        "parameters": f"{model.num_parameters():,}",
        "table": table_of_figures(rows),
        "legend": "\n".join(f"- {name}: {meaning}" for name, meaning in found.metrics.items()),
        "plot": PLOT,
        "error_table": table(
            ["layer", *map(str, gma_layers)], [[stage, *map(figure, values)] for stage, values in errors.items()]
        ),
        "data": data.dataset_name or ", ".join(data.train_file),
        "seed": training.seed,
        "seconds": " and ".join(f"{x:,.0f}" for x in found.seconds),
        "stages": stages(len(found.seconds), args.start_from),
        "longest": model.config.position_limit if args.max_documents else data.block_size,
        "auto_class": type(model).__name__.replace("GMA", "Auto"),
        "machine": machine(training.device),
        "command": command,
    }
    parts = (Template(part).render(fields) for part in (DESCRIPTION, SECTIONS))
    card = encoder_card(folder, str(folder), *parts, args.license, base_model=source)
    if card is None:
        tags = ["gma", "custom_code"]
        data = ModelCardData(library_name="transformers", base_model=source, license=args.license, tags=tags)
        card = ModelCard.from_template(data, template_str=TEMPLATE, **fields)
    with whole_file(folder / "README.md") as path:
        card.save(path)


def stages(number: int, start_from: str | None) -> str:
    """Return how a model was distilled, in words, after "distilled"."""
    whole = "the whole model on the outputs of the source"
    if number == 2:
        whole = f"in two stages: first each GMA layer alone, on the source's own hidden states, then {whole}"
    return f", {whole}" if start_from is None else f" again, {whole}, from `{Path(start_from).name}` on"


def figure(value: float) -> str:
    """Return a number with four digits."""
    return f"{value:.4g}"


def table_of_figures(rows: list[dict[str, Any]]) -> str:
    """Return how near each model is to its source as a table in Markdown, one row for each."""
    return table([*rows[0]], [[row["model"], *map(figure, list(row.values())[1:])] for row in rows])


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(device: torch.device) -> str:
    """Return what the model was trained on, in words."""
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    return f"{hardware}, {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}"


def draw(rows: list[dict], errors: dict[str, list[float]]) -> Figure:
    """Draw each figure by stage, with the source's as a line, and the errors of the layers."""
    names = list(rows[0])[1:]
    plot = Figure(figsize=(4 * (len(names) + 1), 3.5), layout="constrained")
    *axes, last = plot.subplots(1, len(names) + 1)
    for axis, name in zip(axes, names):
        axis.plot([row["model"] for row in rows[1:]], [row[name] for row in rows[1:]], marker="o")
        axis.axhline(rows[0][name], linestyle="--", color="grey", label="source")
        axis.set(ylabel=name, xlabel="stage")
        axis.tick_params(axis="x", rotation=20)
        axis.legend()
    for stage, values in errors.items():
        last.plot(values, marker="o", label=stage)
    last.set(xlabel="GMA layer", ylabel="error over variance", ylim=(0, None))
    last.legend()
    return plot
