"""Model card of a checkpoint: what the model is, how to open it, its metrics, its training arguments."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from jinja2 import Template
from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.trainer_utils import (
    FSDPOption,
    HubStrategy,
    IntervalStrategy,
    SaveStrategy,
    SchedulerType,
    get_last_checkpoint,
)
from transformers.training_args import OptimizerNames

from ..errors import first_sentence
from ..files import whole_file
from ..model.additions_gma import ADDITIONS
from ..model.configuration_gma import GMAConfig
from .encoder_card import encoder_card


PIPELINES = {
    "GMAModel": "feature-extraction",
    "GMAForCausalLM": "text-generation",
    "GMAForMaskedLM": "fill-mask",
    "GMAForSequenceClassification": "text-classification",
    "GMAForTokenClassification": "token-classification",
    "GMAForQuestionAnswering": "question-answering",
    "GMAForMultipleChoice": "multiple-choice",
}
# The training arguments that decide what is learned. Where files go and what is reported, others need not know.
ARGUMENTS = [
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "optim",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
    ),
    *("weight_decay", "max_grad_norm", "label_smoothing_factor", "seed", "bf16", "fp16"),
]
DESCRIPTION = """\
{{ architecture }} ({{ style }}) with {{ parameters }} parameters: {{ layers }} layers of width {{ width }}, \
{{ gma_layers }} of these layers with Gaussian Mixture Attention (Huang and Raza, 2026, \
[arXiv:2606.18283](https://arxiv.org/abs/2606.18283)), {{ heads }} heads, {{ components }} components per head; \
{{ additions }}."""
USAGE = """```python
from transformers import {{ auto_class }}{{ ", AutoTokenizer" if tokenizer }}

# `trust_remote_code` is not needed after `import gma_hf`
model = {{ auto_class }}.from_pretrained("{{ repo }}", trust_remote_code=True)
{%- if tokenizer %}
tokenizer = AutoTokenizer.from_pretrained("{{ repo }}", trust_remote_code=True)
{%- endif %}
```"""
SECTIONS = """{% if metrics %}
## Metrics

{{ metrics }}
{% endif %}{% if evaluations %}
Evaluations during the training:

{{ evaluations }}
{% endif %}{% if arguments %}
## Training

Trained with `Trainer` of Transformers {{ transformers }}{{ seconds }}, with these arguments:

{{ arguments }}
{% endif %}"""
TEMPLATE = f"""---
{{{{ card_data }}}}
---

# {{{{ name }}}}

{DESCRIPTION}

{USAGE}
{SECTIONS}"""


def write_card(
    folder: Path,
    repo: str | None = None,
    license: str | None = None,
    language: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    force: bool = False,
) -> Path:
    """
    Write README.md into a folder that `Trainer` has written, from its config, weights, metrics and arguments.

    Args:
        folder: the `output_dir` of a training, or one of its checkpoints.
        repo: Hub name of the model; the name of the folder when None.
        license: identifier of the licence, as the Hub spells it ("apache-2.0").
        language: code of the language ("en").
        base_model: Hub name of the model that was fine-tuned or converted.
        dataset: Hub name of the data set that was trained on, and that the metrics are of.
        force: replace a README.md that is there.

    Returns:
        The path of the card.

    Raises:
        ValueError: for a folder or a name that will not do; the sentence says which and what is allowed.
    """
    path = folder / "README.md"
    for option, value in (("--name", repo), ("--base-model", base_model), ("--dataset", dataset)):
        check_repo(option, value)
    for option, value, example in (("--license", license, "apache-2.0"), ("--language", language, "en")):
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", value):
            raise ValueError(f"{option} must be an identifier of the Hub, as {example}, but it is {value!r}.")
    if not folder.is_dir():
        raise ValueError(f"FOLDER must be a folder that Trainer has written, but {str(folder)!r} is none.")
    if path.exists() and not force:
        raise ValueError(f"FOLDER must have no README.md without --force, but {str(folder)!r} has one.")
    if not (folder / "training_args.bin").is_file():
        read_config(folder)
        raise ValueError(f"FOLDER must hold training_args.bin, as Trainer writes it, but {str(folder)!r} does not.")
    card = make_card(folder, repo, license, language, base_model, dataset)
    with whole_file(path) as written:
        written.write_text(f"{card}\n", encoding="utf-8")
    return path


def make_card(
    folder: Path,
    repo: str | None = None,
    license: str | None = None,
    language: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
) -> ModelCard:
    """
    Return the card of a checkpoint, with a section on its training where the folder holds the arguments of one.

    See `write_card` for the arguments and errors.
    """
    config, architecture = read_config(folder)
    arguments = read_arguments(folder / "training_args.bin")
    metrics, history = read_metrics(folder), read_history(folder)
    measured = only_measured(metrics or (history[-1] if history else {}))
    name = repo or folder.resolve().name
    fields = {
        "name": name.split("/")[-1],
        "repo": name,
        "architecture": f"`{architecture}`",
        "auto_class": architecture.replace("GMA", "Auto" if architecture == "GMAModel" else "AutoModel"),
        "style": "causal" if config.is_causal else "bidirectional",
        "parameters": f"{count_parameters(folder):,}",
        "layers": config.num_hidden_layers,
        "gma_layers": config.layer_types.count("gma"),
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "components": config.num_components,
        "additions": describe_additions(config),
        "tokenizer": (folder / "tokenizer_config.json").is_file(),
        "metrics": table(["metric", "value"], [[key, figure(value)] for key, value in measured.items()]),
        "evaluations": table_of_evaluations(history),
        "transformers": getattr(config, "transformers_version", None) or "of an unknown version",
        "seconds": f", {metrics['train_runtime']:,.0f} seconds" if "train_runtime" in metrics else "",
        "arguments": table_of_arguments(arguments),
    }
    parts = (Template(part).render(fields) for part in (DESCRIPTION, SECTIONS))
    if (card := encoder_card(folder, name, *parts, license, language, base_model, dataset)) is not None:
        return card
    card_data = ModelCardData(
        model_name=fields["name"],
        library_name="transformers",
        pipeline_tag=PIPELINES[architecture],
        tags=["gma", "gaussian-mixture-attention", "custom_code"],
        license=license,
        language=language,
        base_model=base_model,
        datasets=None if dataset is None else [dataset],
        eval_results=None if dataset is None else results(measured, PIPELINES[architecture], dataset),
    )
    return ModelCard.from_template(card_data, template_str=TEMPLATE, **fields)


def check_repo(option: str, value: str | None) -> None:
    """Refuse what cannot be a name on the Hub."""
    try:
        if value is not None:
            validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(f"{option} must be a name on the Hub, as user/name, but it is {value!r}.") from error


def read_config(folder: Path) -> tuple[GMAConfig, str]:
    """Return the config of a checkpoint and the name of the class that was saved."""
    values = read_json(folder / "config.json")
    if not isinstance(values, dict) or values.get("model_type") != "gma":
        kind = values.get("model_type") if isinstance(values, dict) else None
        raise ValueError(f"FOLDER must hold a GMA model, but the `model_type` in {str(folder)!r} is {kind!r}.")
    architecture = (values.get("architectures") or [None])[0]
    if architecture not in PIPELINES:
        raise ValueError(
            f"`architectures` in config.json must name one of {', '.join(PIPELINES)}, but it is {architecture!r}."
        )
    return GMAConfig.from_dict(values), architecture


def read_arguments(path: Path) -> dict[str, Any]:
    """
    Return the training arguments by their names, none where there is no file of them.

    The file is a pickle, which could run any code: nothing is made of it but what `TrainingArguments` consists of.
    """
    if not path.is_file():
        return {}
    kinds = [TrainingArguments, OptimizerNames, SchedulerType, IntervalStrategy, SaveStrategy, HubStrategy]
    kinds += [FSDPOption, DebugOption]
    try:
        from accelerate.state import PartialState
        from accelerate.utils import DistributedType
        from transformers.trainer_pt_utils import AcceleratorConfig

        with torch.serialization.safe_globals([*kinds, PartialState, DistributedType, AcceleratorConfig]):
            return torch.load(path, weights_only=True).to_dict()
    except Exception as error:  # whatever unpickling ends in
        raise ValueError(
            f"training_args.bin must hold transformers.TrainingArguments alone, but {str(path)!r} cannot be opened as "
            f"these: {first_sentence(error)}."
        ) from error


def read_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics that `Trainer.save_metrics` has written; "eval_" becomes the name of the split."""
    metrics = {}
    for path in sorted(folder.glob("*_results.json")):
        values = read_json(path)
        if not isinstance(values, dict) or not all(isinstance(value, int | float) for value in values.values()):
            raise ValueError(f"{path.name} must hold numbers by name, but {str(path)!r} does not.")
        split = path.name.removesuffix("_results.json")
        if split != "all":
            metrics |= {re.sub("^eval_", f"{split}_", name): value for name, value in values.items()}
    return metrics


def read_history(folder: Path) -> list[dict[str, float]]:
    """Return the evaluations that are on record in the folder, or in its last checkpoint."""
    last = folder if (folder / "trainer_state.json").is_file() else get_last_checkpoint(folder)
    if last is None:
        return []
    state = read_json(Path(last) / "trainer_state.json")
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"trainer_state.json must hold a `log_history`, but that in {str(last)!r} does not.")
    return [entry for entry in state["log_history"] if any(name.startswith("eval_") for name in entry)]


def only_measured(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics without those of the run itself, such as its time."""
    of_the_run = ("epoch", "step", "total_flos", "parameters")
    return {
        name: value
        for name, value in metrics.items()
        if name not in of_the_run and not name.endswith(("_runtime", "_per_second"))
    }


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of the folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"FOLDER must hold {path.name}, in JSON, but {str(path)!r} cannot be read so.") from error


def count_parameters(folder: Path) -> int:
    """Return how many parameters the weights of a folder hold, tied ones counted once."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"FOLDER must hold weights, model.safetensors, but {str(folder)!r} has none.")
    count = 0
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                count += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file.name} must be a file of safetensors, but {str(file)!r} is none.") from error
    return count


def describe_additions(config: GMAConfig) -> str:
    """Return the mixer in words: the paper's, with what is added to it."""
    used = [addition.words for addition in ADDITIONS if addition.is_on(config)]
    return f"the paper's mixer with {', '.join(used)}" if used else "the paper's mixer, nothing added"


def results(measured: dict[str, float], task: str, dataset: str) -> list[EvalResult] | None:
    """Return the entries of the metadata for what was measured on data that was not trained on."""
    found = [
        EvalResult(task_type=task, dataset_type=dataset, dataset_name=dataset, metric_type=name, metric_value=value)
        for name, value in measured.items()
        if not name.startswith("train_") and math.isfinite(value)
    ]
    return found or None


def table_of_arguments(arguments: dict[str, Any]) -> str:
    """Return the table of the training arguments that decide what is learned, empty without any."""
    if not arguments:
        return ""
    length = "max_steps" if arguments["max_steps"] > 0 else "num_train_epochs"  # the first wins
    names = [name for name in [length, *ARGUMENTS] if name in arguments]
    return table(["argument", "value"], [[name, figure(arguments[name])] for name in names])


def table_of_evaluations(history: list[dict[str, float]]) -> str:
    """Return the table of the metrics at each evaluation, empty without any."""
    names = ["step", "epoch", *dict.fromkeys(name for entry in history for name in only_measured(entry))]
    return table(names, [[figure(entry.get(name, math.nan)) for name in names] for entry in history])


def figure(value: Any) -> str:
    """Return a value as it stands in a table."""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown, empty without rows."""
    lines = [header, ["---"] * len(header), *rows] if rows else []
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
