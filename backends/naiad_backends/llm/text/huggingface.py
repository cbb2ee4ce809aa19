"""Tokenizers and chat templates from the files of a Hugging Face folder.

Knows the names of the files. tokenizer.json has all that matters; tokenizer_config.json tells which
special token is which. A broken file is INVALID_ARG, naming it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from naiad_backends.errors import invalid, not_found, unsupported
from naiad_backends.llm.text.tokenizer import Tokenizer

_SPECIALS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def folder_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder."""
    file = folder / "tokenizer.json"
    if not file.exists():
        raise _missing(folder)
    try:
        library = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:
        # The library raises bare exceptions for files that it cannot read.
        raise invalid(str(error), field=file.name) from error
    specials = _specials(folder)
    _add_specials(library, specials)
    eos = library.token_to_id(specials["eos_token"]) if "eos_token" in specials else None
    return Tokenizer(library, specials, frozenset(() if eos is None else (eos,)))


def folder_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name; that without a name is `default`."""
    config = _object(folder / "tokenizer_config.json")
    templates = _named_templates(config.get("chat_template"))
    others = folder / "additional_chat_templates"
    files = {file.stem: file for file in sorted(others.glob("*.jinja"))}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    return templates | {name: read_template(file) for name, file in files.items()}


def read_template(file: Path) -> str:
    """A chat template in a file of its own."""
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(f"cannot be read: {error}", field=str(file)) from error


def _missing(folder: Path) -> Exception:
    if (folder / "tokenizer.model").exists():
        return unsupported(
            "the model has its tokenizer in SentencePiece's format only",
            field=str(folder / "tokenizer.model"),
            hint="write a tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    return not_found("the model has no tokenizer.json", field=str(folder))


def _specials(folder: Path) -> dict[str, str]:
    """The special tokens that the files name; older models have them in a file of their own."""
    known = {
        **_object(folder / "special_tokens_map.json"),
        **_object(folder / "tokenizer_config.json"),
    }
    specials = {}
    for name in _SPECIALS:
        match known.get(name):
            case str(token) | {"content": str(token)}:
                specials[name] = token
    return specials


def _add_specials(library: tokenizers.Tokenizer, specials: Mapping[str, str]) -> None:
    """Make special what is named so; a token that the model has no row for stays out."""
    added = {token.content for token in library.get_added_tokens_decoder().values()}
    library.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in specials.values()
            if token not in added and library.token_to_id(token) is not None
        ]
    )


def _named_templates(given: object) -> dict[str, str]:
    match given:
        case None:
            return {}
        case str(template):
            return {"default": template}
        case list() if all(_is_named_template(item) for item in given):
            return {item["name"]: item["template"] for item in given}
    raise invalid(
        "is neither a template nor a list of named ones",
        field="tokenizer_config.json: chat_template",
    )


def _is_named_template(item: object) -> bool:
    match item:
        case {"name": str(), "template": str()}:
            return True
    return False


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise invalid(f"cannot be read: {error}", field=file.name) from error
    if not isinstance(content, dict):
        raise invalid("is not a JSON object", field=file.name)
    return content
