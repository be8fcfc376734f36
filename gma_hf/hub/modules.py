"""Files that make a checkpoint a model of sentence-transformers: its modules, prompts and limits."""

import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import cached_file

from .find import IF_THERE


# The first names the modules. sentence-transformers looks for the last under a name of each family.
FILES = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json")
WITHOUT_FILES = ("Normalize",)  # classes whose folder may be missing: the Hub and git keep no empty ones


def find_modules(source: str | Path) -> Path | None:
    """
    Return the folder that holds the modules of a checkpoint, downloaded if need be, or None where it has none.

    Args:
        source: folder or Hub name.

    Raises:
        ValueError: if modules.json is not what sentence-transformers writes, or names a module that it does not have.
    """
    found = cached_file(str(source), FILES[0], **IF_THERE)
    if found is None:
        return None
    folder = Path(found).parent
    modules = read_modules(folder, "`source`")
    for module in modules:
        if not str(module.get("type")).startswith("sentence_transformers."):
            raise ValueError(
                f"`source` must consist of modules of sentence-transformers, but modules.json names a "
                f"{module.get('type')!r}."
            )
    if not modules or modules[0].get("path"):
        raise ValueError("`source` must hold its network itself, but modules.json names none or a folder for it.")
    if not Path(source).is_dir():
        patterns = [*FILES, *(f"{name}/*" for name in folders_of(modules))]
        folder = Path(snapshot_download(str(source), allow_patterns=patterns))
    return folder


def copy_modules(modules: Path, folder: Path, max_length: int | None = None) -> None:
    """
    Make the checkpoint in `folder` the model of sentence-transformers that its source is.

    Pooling, normalisation, dense layers, prompts and the similarity are the source's. The checkpoint is loaded in
    float32 then, as the source is, whatever its weights are kept in.

    Args:
        modules: what `find_modules` returned for the source.
        folder: a checkpoint, as `save_pretrained` writes it.
        max_length: tokens that the model reads of a text, where that is not what the source reads.

    Raises:
        ValueError: if a module of the source lacks its folder.
    """
    for path in module_files(modules, "`source`"):
        target = folder / path.relative_to(modules)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    if max_length is not None:
        for path in folder.glob(FILES[2]):
            update(path, max_seq_length=max_length)
    update(folder / "config.json", dtype="float32")


def update(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    values = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def module_files(folder: Path, argument: str = "FOLDER") -> list[Path]:
    """
    Return the files of the modules of a checkpoint, none where it has no modules.json.

    Args:
        folder: of the checkpoint.
        argument: what the caller calls it, for the sentence.

    Raises:
        ValueError: if modules.json is not what sentence-transformers writes, or names a folder that is not there.
    """
    found = [path for path in folder.iterdir() if any(fnmatch(path.name, name) for name in FILES)]
    for name, kind in folders_of(read_modules(folder, argument)).items():
        if not (folder / name).is_dir() and kind not in WITHOUT_FILES:
            raise ValueError(f"modules.json must name folders of {argument}, but {str(folder)!r} has no {name!r}.")
        found += [path for path in (folder / name).rglob("*") if path.is_file()]
    return found


def folders_of(modules: list[dict[str, Any]]) -> dict[str, str]:
    """Return the class of each module by the name of its folder, as "1_Pooling", without the network's own."""
    paths = {str(module.get("path")): str(module.get("type")).rpartition(".")[2] for module in modules}
    return {path: kind for path, kind in paths.items() if re.fullmatch(r"[\w.-]*\w[\w.-]*", path)}


def read_modules(folder: Path, argument: str) -> list[dict[str, Any]]:
    """Return the entries of modules.json, none where there is no such file."""
    path = folder / FILES[0]
    if not path.is_file():
        return []
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{argument} must hold modules.json in JSON, but {str(path)!r} is not.") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError(
            f"modules.json must hold the modules of sentence-transformers, but that of {str(folder)!r} does not."
        )
    return modules


def pooling_of(folder: Path) -> str:
    """
    Return how a model of sentence-transformers makes one embedding of those of its tokens, by sentence-transformers'
    name ("mean", "cls"), several joined by a plus; "mean" where no module pools.
    """
    for name, kind in folders_of(read_modules(folder, "`source`")).items():
        if kind == "Pooling":
            settings = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
            modes = settings.get("pooling_mode")  # one name or several; older files have a flag for each
            if modes is None:
                flags = [key for key, is_on in settings.items() if key.startswith("pooling_mode_") and is_on]
                modes = [re.sub("^pooling_mode_|_tokens?$", "", flag) for flag in flags]
            return modes if isinstance(modes, str) else "+".join(modes)
    return "mean"


def read_settings(folder: Path) -> dict[str, Any]:
    """Return config_sentence_transformers.json, empty where there is no such file."""
    path = folder / FILES[1]
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
