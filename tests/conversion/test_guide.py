"""The guide on conversion names what the tables hold."""

import re
from pathlib import Path

from gma_hf.conversion.families import FAMILIES


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "convert.md"
ROW = re.compile(r"^\| (?P<name>[\w-]+) \| `(?P<model_type>[\w-]+)` \| (?P<classes>`.+`) \|$", re.MULTILINE)


def test_the_guide_names_every_family_and_class():
    rows = {
        row["model_type"]: (row["name"], re.findall(r"`(\w+)`", row["classes"]))
        for row in ROW.finditer(GUIDE.read_text(encoding="utf-8"))
    }
    assert rows == {model_type: (family.name, list(family.heads)) for model_type, family in FAMILIES.items()}
