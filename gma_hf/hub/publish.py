"""Publishing: a checkpoint, its card and its code assembled in one folder, opened as others will, and uploaded."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from transformers.dynamic_module_utils import custom_object_save

from ..errors import first_sentence
from ..files import whole_folder
from .card import check_repo, make_card, read_config, read_json
from .find import last_checkpoint
from .modules import module_files


# What belongs to a checkpoint. All else in its folder, such as optimizer and logs of a training, stays there.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
PARTS = (
    *WEIGHTS,
    *("README.md", "LICENSE", "LICENSE.*", "NOTICE", "config.json", "generation_config.json", ".gitattributes"),
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
    ),
    *("tokenizer.model", "spiece.model", "chat_template.*", "preprocessor_config.json", "processor_config.json"),
)
# What is deleted on the Hub unless it is uploaded anew: other files of weights would be opened instead of the new ones
STALE = (*WEIGHTS, "pytorch_model*", "*_gma.py")


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload a GMA checkpoint with its code",
    to_folder: str | os.PathLike | None = None,
    force: bool = False,
) -> str:
    """
    Upload a checkpoint to the Hugging Face Hub in one commit, with the code that opens it without gma_hf.

    Config, weights, tokenizer, generation config, card and the modules of sentence-transformers are assembled in a
    temporary folder, with our code and the whole `auto_map` beside them. A card is written where the folder has none.
    The assembled copy is then opened in a fresh process without gma_hf, and nothing is uploaded unless it opens. What
    a training left in the folder (optimizer, logs, checkpoints) is not published. Weights and code that the repository
    held before in other files are deleted in the same commit.

    Args:
        folder: a GMA checkpoint as `save_pretrained`, `Trainer` or sentence-transformers writes it.
        repo_id: name on the Hub, as user/name.
        private: whether a new repository is private. One that is there must be private already.
        token: of the Hub; None takes that of `hf auth login` or `HF_TOKEN`.
        commit_message: of the commit.
        to_folder: folder to write the assembled copy to, instead of uploading; it must not exist.
        force: whether a folder at `to_folder` is replaced.

    Returns:
        The address of the repository, or the path of the folder.

    Raises:
        ValueError: for a folder that is no whole GMA checkpoint or would not open again, for a wrong name, for a
            public repository where a private one is asked for, and for an upload that the Hub does not take.
        FileExistsError: if there is something at `to_folder` already.
    """
    folder = Path(folder)
    check_repo("REPO_ID", repo_id)
    if to_folder is not None:
        if Path(to_folder).resolve() == folder.resolve():
            raise ValueError(f"--to-folder must be another folder than FOLDER, but both are {str(folder)!r}.")
        with whole_folder(to_folder, replace=force) as assembled:
            assemble(folder, assembled, repo_id)
            check_opens(assembled)
        return str(to_folder)
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE must not be set to upload, but it is; --to-folder assembles without the Hub.")
    with tempfile.TemporaryDirectory(prefix="gma-hf-") as temporary:
        assembled = Path(temporary) / "checkpoint"
        assembled.mkdir()
        assemble(folder, assembled, repo_id)
        check_opens(assembled)
        try:
            return upload(assembled, repo_id, private=private, token=token, commit_message=commit_message)
        except ValueError:
            raise
        except Exception as error:  # whatever the Hub or the connection says
            raise ValueError(f"{repo_id!r} cannot be uploaded: {first_sentence(error)}.") from error


def assemble(folder: Path, assembled: Path, repo_id: str) -> None:
    """
    Copy what belongs to the checkpoint in `folder` to `assembled`, with our code, the whole `auto_map` and a card.

    Raises:
        ValueError: if `folder` holds no whole GMA checkpoint.
    """
    if not folder.is_dir():
        raise ValueError(f"FOLDER must be a folder with a GMA checkpoint, but {str(folder)!r} is none.")
    if hint := last_checkpoint(folder):
        raise ValueError(f"FOLDER must hold config.json, but {str(folder)!r} does not{hint}.")
    config, _ = read_config(folder)
    check_weights(folder)
    for path in parts_of(folder):
        (assembled / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, assembled / path)
    values = read_json(folder / "config.json")
    values["auto_map"] = dict(config.auto_map)
    (assembled / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    add_code(assembled, config.auto_map)
    if not (folder / "README.md").is_file():
        (assembled / "README.md").write_text(f"{make_card(folder, repo_id)}\n", encoding="utf-8")


def check_weights(folder: Path) -> None:
    """Refuse a folder without weights, or with an index of weights that names a file that is not there."""
    names = ["model.safetensors"]
    if (index := folder / "model.safetensors.index.json").is_file() and not (folder / names[0]).is_file():
        values = read_json(index)
        names = (
            sorted(set(values["weight_map"].values())) if isinstance(values, dict) and "weight_map" in values else []
        )
    for name in names or ["model.safetensors"]:
        if not (folder / name).is_file():
            raise ValueError(f"FOLDER must hold its weights, {name}, but {str(folder)!r} does not.")


def parts_of(folder: Path) -> list[Path]:
    """Return the files that belong to a checkpoint, relative to its folder."""
    found = [path for path in folder.iterdir() if path.is_file() and any(fnmatch(path.name, part) for part in PARTS)]
    found += module_files(folder)
    if (folder / "additional_chat_templates").is_dir():
        found += (folder / "additional_chat_templates").glob("*.jinja")
    if (card := folder / "README.md").is_file():
        found += files_shown_in(card)
    return sorted({path.relative_to(folder) for path in found})


def files_shown_in(card: Path) -> list[Path]:
    """Return the files beside a card that it shows or links to."""
    links = re.findall(r"\]\(([\w.-]+)\)", card.read_text(encoding="utf-8", errors="replace"))
    return [card.parent / link for link in links if (card.parent / link).is_file()]


def add_code(assembled: Path, auto_map: dict[str, str]) -> None:
    """Copy the files of the classes in `auto_map` to `assembled`, with all that these files import from each other."""
    for module in dict.fromkeys(reference.rpartition(".")[0] for reference in auto_map.values()):
        name = next(ref.rpartition(".")[2] for ref in auto_map.values() if ref.startswith(f"{module}."))
        custom_object_save(getattr(import_module(f"gma_hf.model.{module}"), name), assembled)


def check_opens(folder: Path) -> None:
    """
    Open an assembled checkpoint in a fresh process in which gma_hf cannot be imported.

    Raises:
        ValueError: if it does not open, or what its model computes is not finite.
    """
    code = Path(__file__).with_name("open_copy.py").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="gma-hf-") as empty:
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": empty,
            "TRANSFORMERS_VERBOSITY": "error",
        }
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", code, str(folder.resolve())]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=empty)
    said = done.stdout.strip().splitlines() or (done.stderr.strip().splitlines() if done.returncode != 0 else [])
    if said or done.returncode != 0:
        why = first_sentence(ValueError(said[-1] if said else f"its process ended with status {done.returncode}"))
        raise ValueError(f"FOLDER must open again where gma_hf is not installed, but its copy does not: {why}.")


def upload(folder: Path, repo_id: str, *, private: bool, token: str | None, commit_message: str) -> str:
    """Upload all files of a folder in one commit, deleting what is stale, and return the address of the repository."""
    api = HfApi(token=token)
    # None leaves to an organisation what its new repositories are
    repo = api.create_repo(repo_id, private=private or None, exist_ok=True)
    info = api.model_info(repo.repo_id)
    if private and info.private is False:
        raise ValueError(f"With --private, REPO_ID must not be public, but {repo.repo_id!r} on the Hub is.")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    held = {file.rfilename for file in info.siblings or []}
    stale = sorted(name for name in held - set(names) if any(fnmatch(name, pattern) for pattern in STALE))
    operations: list[Any] = [CommitOperationDelete(name) for name in stale]
    operations += [CommitOperationAdd(name, str(folder / name)) for name in names]
    # Not `upload_folder`, which makes several commits of many files
    api.create_commit(repo.repo_id, operations, commit_message=commit_message, parent_commit=info.sha)
    return str(repo)
