"""The command line reference, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from fusionrag_integrations.cli import main

PLACE = "<!-- commands -->"
DEFAULT = re.compile(r"\s*\[default: (.*)\]$")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the commands where a page has room for them."""
    return markdown.replace(PLACE, "\n\n".join(sections(main, "fusionrag")))


def sections(command: click.Command, path: str) -> Iterator[str]:
    """What a command does and takes; of a group, what each of its commands does and takes."""
    context = click.Context(command, info_name=path)
    level = "#" * (1 + len(path.split()))
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"{level} {path}", f"```text\n{path} {usage}\n```", described(command.help or "")]
    if options := [param for param in command.params if isinstance(param, click.Option)]:
        lines = ["| option | | default |", "| --- | --- | --- |"]
        parts.append("\n".join(lines + [row(option, context) for option in options]))
    yield "\n\n".join(parts)
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from sections(inner, f"{path} {name}")


def described(text: str) -> str:
    """A command's help as Markdown: what click must not wrap is shown as it stands."""
    paragraphs = re.split(r"\n\s*\n", cleandoc(text))
    return "\n\n".join(
        f"```text\n{paragraph[2:]}\n```" if paragraph.startswith("\b\n") else literal(paragraph)
        for paragraph in paragraphs
    )


def row(option: click.Option, context: click.Context) -> str:
    """One option as a row of a table."""
    names = ", ".join(option.opts)
    kind = "" if option.is_flag else f" {option.make_metavar(context)}"
    text = option.help or ""
    default = ""
    if option.required:
        default = "required"
    elif told := DEFAULT.search(text):
        text, default = DEFAULT.sub("", text), told[1]
    elif option.show_default:
        default = f"`{option.default}`"
    cells = (f"`{names}{kind}`", literal(text), default)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def literal(text: str) -> str:
    """Text in which nothing is markup."""
    return re.sub(r"([\\*_{}\[\]<>])", r"\\\1", " ".join(text.split()))
