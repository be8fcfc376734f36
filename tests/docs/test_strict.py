"""The command by which `make docs` builds the manual takes no page with a fault."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
if not os.environ.get("ALL_DOCS"):  # by `make docs`: there nothing may be skipped
    pytest.importorskip("mkdocs")
yaml = pytest.importorskip("yaml")

# Pages beside index.md, what index.md says, and whether the build may end well
FAULTS = {
    "whole": ({"other.md": "# Other"}, "[other](other.md)", True),
    "page outside the navigation": ({"other.md": "# Other", "stray.md": "# Stray"}, "[other](other.md)", False),
    "dead link": ({"other.md": "# Other"}, "[other](nowhere.md)", False),
    "dead anchor": ({"other.md": "# Other"}, "[other](other.md#nowhere)", False),
}


def command() -> list[str]:
    """Return the arguments of mkdocs in the Makefile."""
    (found,) = re.findall(r"\$\(BIN\)/(mkdocs build.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    return [sys.executable, "-m", *found.split()]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_the_build(fault, tmp_path):
    pages, text, ends_well = FAULTS[fault]
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    small = {"site_name": "small", "nav": ["index.md", "other.md"], "validation": settings["validation"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(small), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    for name, content in (pages | {"index.md": text}).items():
        (tmp_path / "docs" / name).write_text(content, encoding="utf-8")
    done = subprocess.run(
        command(),
        cwd=tmp_path,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode == 0) == ends_well, done.stderr
