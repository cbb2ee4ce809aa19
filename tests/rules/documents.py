"""The project's documents and its own files, as the rules read them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

SOURCE_ROOTS = ("server", "backends", "ensembles", "proto")
"""Top-level folders that hold one package each."""


def read(document: str) -> str:
    """The text of a document, by its path in the project."""
    return (ROOT / document).read_text("utf-8")


def prose(text: str) -> str:
    """A document's text without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def code_blocks(text: str, language: str) -> list[str]:
    """The contents of the code blocks that are marked with `language`, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def names(text: str) -> list[str]:
    """What stands `in backticks`, outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", prose(text))
