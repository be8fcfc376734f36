"""
`gma-hf`, as it is installed: the command line, which is there before torch and Transformers are.

Importing gma_hf imports both, so that the Auto classes know its models: seconds that `--help` and the completion of a
shell should not take. So the package is made known here without being executed, and `gma_hf.cli.loading.load` executes
it, as any import would, before a command runs. `gma_hf/__init__.py` does the like for `python -m gma_hf`, and for no
other program: `import gma_hf` is always whole.
"""

import sys
from importlib.util import find_spec, module_from_spec


def app() -> None:
    """Run the command line."""
    if "gma_hf" not in sys.modules:
        sys.modules["gma_hf"] = module_from_spec(find_spec("gma_hf"))
    from gma_hf.cli import app as commands
    from gma_hf.errors import refusals

    with refusals():
        commands(prog_name="gma-hf")
