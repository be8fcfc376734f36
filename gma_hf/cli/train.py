"""`gma-hf train`: the recipes that train a model."""

from importlib import import_module
from typing import Annotated

import typer

from ..errors import extra, first_sentence


# By what --task says: the recipe, and the class of a checkpoint that it trains
RECIPES = {
    "causal-lm": ("train_clm", "ForCausalLM"),
    "masked-lm": ("train_mlm", "ForMaskedLM"),
    "classification": ("classify", "ForSequenceClassification"),
}


def train(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(RECIPES)}; by default what the class of --model_name_or_path is for."),
    ] = None,
    recipe_help: Annotated[bool, typer.Option("--recipe-help", help="List the arguments of the recipe.")] = False,
) -> None:
    """
    Train a model: `python -m gma_hf.recipes.train_clm`, `train_mlm` or `classify`.

    All other arguments are the recipe's, such as --model_name_or_path, --train_file, --output_dir and those of
    TrainingArguments.
    """
    if task is not None and task not in RECIPES:
        raise ValueError(f"--task must be one of {', '.join(RECIPES)}, but it is {task!r}.")
    recipe, _ = RECIPES[task or task_of(context.args)]
    run_recipe(recipe, "`gma-hf train`", ["--help"] if recipe_help else context.args)


def run_recipe(name: str, what: str, arguments: list[str]) -> None:
    """Run a recipe of `gma_hf.recipes` by its name."""
    with extra("train", what):
        recipe = import_module(f"gma_hf.recipes.{name}")
    recipe.main(list(arguments))


def task_of(arguments: list[str]) -> str:
    """
    Return the task that a checkpoint among the arguments of a recipe is for.

    Raises:
        ValueError: if none is named, or if its class is for none of the tasks.
    """
    name = value_of("--model_name_or_path", arguments)
    if name is None:
        raise ValueError(
            f"--task must be given ({', '.join(RECIPES)}) where no --model_name_or_path is, but it is not."
        )
    classes = saved_classes(name)
    for task, (_, ending) in RECIPES.items():
        if any(saved.endswith(ending) for saved in classes):
            return task
    found = ", ".join(classes) or "unknown"
    raise ValueError(f"--task must be given ({', '.join(RECIPES)}): none is for the class of {name!r}, {found}.")


def saved_classes(name: str) -> list[str]:
    """Return the names of the classes that a checkpoint was saved by."""
    from transformers import AutoConfig

    from ..hub.find import check_checkpoint

    check_checkpoint(name, "--model_name_or_path")
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False).architectures or []
    except Exception as error:
        raise ValueError(f"--model_name_or_path {name!r} cannot be opened: {first_sentence(error)}.") from error


def value_of(option: str, arguments: list[str]) -> str | None:
    """Return what stands behind an option, as "--name value" or "--name=value"."""
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None
