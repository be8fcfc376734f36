"""The code blocks of README.md and docs/, and what the comment before each says about how to run it."""

import re
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?:^<!-- (not run|runs against): ([^\n]+?) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
RUN = ("python", "bash")
SHOWN = ("text", "bibtex")  # and not meant to be run


@dataclass(frozen=True)
class Block:
    """A code block: where it stands, its language, its code, and why it is not run, if it is not."""

    page: str
    number: int
    language: str
    code: str
    not_run_because: str | None
    needs_hub: bool

    @property
    def name(self) -> str:
        return f"{self.page}:{self.number}"


def blocks() -> list[Block]:
    """Return all blocks of README.md and docs/, in order."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, (mark, words, language, code) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            reason = words if mark == "not run" else None
            name = str(page.relative_to(ROOT))
            found.append(Block(name, number, language, code, reason, mark == "runs against"))
    return found
