"""What mkdocs asks for while it builds the site: the parts of pages that are made from the code."""

import re
from dataclasses import fields

from latex2mathml.converter import convert as mathml
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from gma_hf import GMAConfig
from gma_hf.cli import app
from gma_hf.model.configuration_gma import OWN_FIELDS


# `name (kind): words`, up to the next field or section of the docstring
FIELD = re.compile(r"^ {8}(\w+) \((.+?)\): (.+?)(?=^ {8}\w+ \(|^ {4}\w+:)", re.DOTALL | re.MULTILINE)
# Code, which is left alone, and equations as GitHub takes them
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
EQUATION, IN_LINE = re.compile(r"\$\$(.+?)\$\$", re.DOTALL), re.compile(r"\$(\S[^$\n]*?)\$")


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Return a page with MathML for its equations, and what is generated in the place of its marks."""
    parts = CODE.split(markdown)
    markdown = "".join(part if CODE.fullmatch(part) else with_mathml(part) for part in parts)
    for mark, make in {"commands": commands, "fields": config_fields}.items():
        if f"<!-- generated: {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- generated: {mark} -->", make())
    return markdown


def with_mathml(text: str) -> str:
    """Return text with MathML for the equations in it, which browsers show without a script."""
    text = EQUATION.sub(lambda found: f'<div class="equation">{mathml(found[1].strip(), display="block")}</div>', text)
    return IN_LINE.sub(lambda found: mathml(found[1]), text)


def commands() -> str:
    """Return every command of `gma-hf` with its arguments and options, from typer itself."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=Context(command), name="gma-hf", title="gma-hf")
    return text.partition("\n")[2]  # the page has a title of its own


def config_fields() -> str:
    """Return every field of `GMAConfig` as a row of a table: its kind, its default, what it means."""
    words = {name: (kind, " ".join(text.split())) for name, kind, text in FIELD.findall(GMAConfig.__doc__)}
    defaults = {field.name: field.default for field in fields(GMAConfig)}
    defaults["max_position_embeddings"] = GMAConfig().max_position_embeddings
    lines = ["| field | kind | default | what it means |", "|---|---|---|---|"]
    for name in OWN_FIELDS:
        if name in words:
            kind, text = words[name]
            lines.append(f"| `{name}` | {kind.replace('|', '/')} | `{defaults[name]!r}` | {text} |")
    return "\n".join(lines)
