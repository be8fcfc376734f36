"""
Recipes: one script per task, on Trainer and Accelerate, each with a `main` that takes its arguments as a list.

`python -m gma_hf.recipes.train_clm --help` lists the arguments of one. Its docstring has commands to begin with.
"""
