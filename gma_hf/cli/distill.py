"""`gma-hf distill`: the recipe that makes a GMA model of a softmax model and trains it to compute the same."""

from typing import Annotated

import typer

from .train import run_recipe


def distill(
    context: typer.Context,
    recipe_help: Annotated[bool, typer.Option("--recipe-help", help="List the arguments of the recipe.")] = False,
) -> None:
    """
    Convert a GPT-2- or BERT-style checkpoint and distill it: `python -m gma_hf.recipes.distill`.

    All other arguments are the recipe's, such as --source, --train_file, --output_dir and those of TrainingArguments.
    """
    run_recipe("distill", "`gma-hf distill`", ["--help"] if recipe_help else context.args)
