"""config.pbtxt: protobuf text to a ModelConfig, with the line of every field and of every mistake.

protobuf's own parser decides what is accepted and stops at the first mistake; the scanner here
goes through the same text once more for the lines and all the mistakes. It is stricter in one
point, as Triton is: an unknown escape in a string, such as \\q, is refused.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from naiad.repository import schema
from naiad.repository.mistakes import ConfigError, Mistake, entry, item, member
from naiad_proto import model_config_pb2 as pb

# A word, a number, or a string that may lack its end; anything else is a token of one character.
_TOKEN = re.compile(
    r"(?P<space>\s+|#.*)"
    r"|[A-Za-z_][A-Za-z0-9_+-]*"
    r"|(?:[0-9+-]|\.[0-9])[A-Za-z0-9_.+-]*"
    r'|"(?:[^"\\]|\\.)*(?:"|\\?$)'
    r"|'(?:[^'\\]|\\.)*(?:'|\\?$)"
    r"|.",
    re.DOTALL,
)
_WHOLE_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_ESCAPE = re.compile(r"\\(.)([0-7]{0,2})")
_CLOSER = {"{": "}", "<": ">", "[": "]"}
_ENDS = {"", "}", ">", "]", ",", ";"}
_FLOAT_TYPES = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text; `text` is empty at its end. `line` counts from 1."""

    text: str
    line: int

    @property
    def shown(self) -> str:
        """The token for a message."""
        if not self.text:
            return "the end of the file"
        text = self.text if len(self.text) <= 40 else f"{self.text[:37]}..."
        return text if self.is_string else f"'{text}'"

    @property
    def is_string(self) -> bool:
        return self.text[:1] in ('"', "'")

    @property
    def is_word(self) -> bool:
        return self.text[:1].isalpha() or self.text[:1] == "_"


@dataclass(slots=True)
class Scan:
    """lines: field path -> line.  mistakes: in the order of the text."""

    lines: dict[str, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    bad_escapes: list[Mistake] = field(default_factory=list)


def parse(text: str, file: str = "config.pbtxt") -> tuple[pb.ModelConfig, dict[str, int]]:
    """The message and the line of each field path in it.

    file: its name for the error. Raises ConfigError with every mistake that can be told.
    """
    result = scan(text)
    if result.bad_escapes:
        raise ConfigError(file, result.mistakes)
    try:
        # ValueError: some values pass the parser and are refused by the message.
        return text_format.Parse(text, pb.ModelConfig()), result.lines
    except (text_format.ParseError, ValueError) as error:
        raise ConfigError(file, result.mistakes or [_parsers_own(error)]) from error


def scan(text: str) -> Scan:
    """Lines and mistakes of a text, whatever UTF-8 can express. Never raises."""
    scanner = _Scanner(text)
    scanner.body(schema.MODEL_CONFIG, "", None)
    return scanner.result


def _parsers_own(error: text_format.ParseError | ValueError) -> Mistake:
    """What protobuf says, for a mistake that the scanner does not know."""
    line = error.GetLine() if isinstance(error, text_format.ParseError) else None
    return Mistake("", f"cannot be parsed: {error}", "", line or 0)


def _tokens(text: str) -> Iterator[Token]:
    # Strings and comments end with their line, so each line stands alone.
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        for match in _TOKEN.finditer(line):
            if match["space"] is None:
                yield Token(match[0], number)
    yield Token("", len(lines))


class _Scanner:
    """Walks the tokens along the descriptors; each method leaves the tokens behind its part."""

    def __init__(self, text: str) -> None:
        self.result = Scan()
        self._tokens = list(_tokens(text))
        self._at = 0
        self._around: list[Descriptor] = []
        self._open_lists = 0
        self._ended = False
        self._cut_lines: set[int] = set()

    # -- tokens

    @property
    def _token(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._token
        if token.text:
            self._at += 1
        return token

    def _accept(self, text: str) -> bool:
        found = self._token.text == text
        if found:
            self._next()
        return found

    def _starts_field(self) -> bool:
        """Whether a word and then a colon or a bracket come now: no value looks like that."""
        token = self._token
        return token.is_word and self._tokens[self._at + 1].text in (":", "{", "<", "[")

    def _add(self, path: str, message: str, line: int, hint: str = "") -> None:
        self.result.mistakes.append(Mistake(path, message, hint, line))

    def _unclosed(self, path: str, opener: Token) -> None:
        """At the end of the file only the innermost open bracket is worth a report."""
        # A string that runs to the end of its line hides the brackets in it.
        if not self._ended and opener.line not in self._cut_lines:
            closer = _CLOSER[opener.text]
            self._add(path, f"'{opener.text}' is never closed", opener.line, f"add '{closer}'")
        self._ended = not self._token.text

    # -- structure

    def body(self, descriptor: Descriptor, path: str, opener: Token | None) -> "_Given":
        """The fields of a message up to its end, which is taken too."""
        given = _Given()
        self._around.append(descriptor)
        while not self._closes(path, opener):
            self._field(descriptor, path, given)
        self._around.pop()
        return given

    def _closes(self, path: str, opener: Token | None) -> bool:
        """Whether the message ends here, rightly or not."""
        token = self._token
        if not token.text:
            if opener is not None:
                self._unclosed(path, opener)
            return True
        if token.text not in ("}", ">", "]"):
            return False
        if opener is not None and token.text == "]" and self._open_lists:
            self._unclosed(path, opener)
            return True
        self._next()
        if opener is not None and token.text == _CLOSER[opener.text]:
            return True
        if opener is None or token.text == "]":
            self._add(path, f"'{token.text}' closes nothing", token.line, "remove it")
            return False
        fits = _CLOSER[opener.text]
        self._add(path, f"'{opener.text}' is closed by '{token.text}'", token.line, f"use '{fits}'")
        return True

    def _field(self, descriptor: Descriptor, path: str, given: "_Given") -> None:
        name = self._next()
        if not re.match(r"\w", name.text):
            self._add(path, f"expected a field's name, found {name.shown}", name.line)
            if name.text in _CLOSER:
                self._skip_bracket(path, name)
            return
        field = descriptor.fields_by_name.get(name.text)
        if field is None:
            around = self._around[:-1]
            mistake = schema.unknown_field(name.text, path, descriptor, around, name.line)
            self.result.mistakes.append(mistake)
            self._accept(":")
            self._skip_value(mistake.path)
        else:
            self._known_field(field, member(path, name.text), name, given)
        if not self._accept(","):
            self._accept(";")

    def _known_field(self, field: FieldDescriptor, path: str, name: Token, given: "_Given") -> None:
        self.result.lines.setdefault(path, name.line)
        if not self._accept(":") and not schema.is_message(field):
            self._add(
                path, f"':' is missing after '{name.text}'", name.line, f"write '{name.text}: …'"
            )
        if field.is_repeated:
            self._repeated(field, path, given)
            return
        self.result.mistakes += given.clashes(field, path, name.line)
        if self._token.text == "[":
            self._add(path, "takes one value, not a list", self._token.line, "remove the brackets")
            self._skip_bracket(path, self._next())
            return
        given.take(field, name.line, self._value(field, path))

    def _repeated(self, field: FieldDescriptor, path: str, given: "_Given") -> None:
        if self._token.text != "[":
            self._element(field, path, given)
            return
        opener = self._next()
        if self._accept("]"):
            return
        self._open_lists += 1
        self._list(field, path, opener, given)
        self._open_lists -= 1

    def _list(self, field: FieldDescriptor, path: str, opener: Token, given: "_Given") -> None:
        while True:
            self._element(field, path, given)
            token = self._token
            if self._accept("]"):
                return
            if token.text in ("", "}", ">", ";") or self._starts_field():
                self._unclosed(path, opener)
                return
            if not self._accept(","):
                self._add(path, f"',' is missing before {token.shown}", token.line)
            elif self._accept("]"):
                self._add(path, "no value follows the last ','", token.line, "remove that ','")
                return

    def _element(self, field: FieldDescriptor, path: str, given: "_Given") -> None:
        own = item(path, given.count(field))
        line = self._token.line
        before = len(self.result.lines)
        self.result.lines[own] = line
        value = self._value(field, own)
        if isinstance(value, _Given) and schema.is_map(field):
            self._name_entry(own, entry(path, value.key), before)

    def _name_entry(self, numbered: str, keyed: str, before: int) -> None:
        """Make the fields of a map's entry known under its key as well."""
        lines = self.result.lines
        for path in list(lines)[before:]:
            own = path.removeprefix(numbered).removeprefix(".value")
            lines.setdefault(keyed + own, lines[path])

    # -- values

    def _value(self, field: FieldDescriptor, path: str) -> object:
        """One value of the field's type: fields for a message, None where it is wrong."""
        token = self._token
        if token.text in _ENDS or (
            self._starts_field() and token.line > self._tokens[self._at - 1].line
        ):
            previous = self._tokens[self._at - 1]
            self._add(path, "the value is missing", previous.line)
            return None
        if schema.is_message(field):
            if token.text not in ("{", "<"):
                self._add(path, f"expected '{{', found {token.shown}", token.line)
                self._skip_value(path)
                return None
            return self.body(schema.inner(field), path, self._next())
        if token.text in _CLOSER:
            self.result.mistakes.append(schema.wrong_type(field, path, token.shown, token.line))
            self._skip_bracket(path, self._next())
            return None
        if token.is_string:
            return self._string(field, path)
        return self._plain(field, path, self._next())

    def _string(self, field: FieldDescriptor, path: str) -> object:
        """A string, which may come in several adjacent pieces."""
        first = self._token
        pieces: list[bytes] = []
        while self._token.is_string:
            pieces.append(self._piece(path, self._next()))
        if field.type != FieldDescriptor.TYPE_STRING:
            hint = "write it without quotes"
            self.result.mistakes.append(
                schema.wrong_type(field, path, first.shown, first.line, hint)
            )
            return None
        try:
            return b"".join(pieces).decode()
        except UnicodeDecodeError:
            self._add(path, f"{first.shown} is not UTF-8 text", first.line)
            return None

    def _piece(self, path: str, token: Token) -> bytes:
        """The bytes of one quoted piece; empty where it is wrong."""
        if not _WHOLE_STRING.fullmatch(token.text):
            quote = token.text[0]
            self._add(
                path,
                f"the string {token.shown} is never closed",
                token.line,
                f"end it with {quote}",
            )
            self._cut_lines.add(token.line)
            return b""
        for escape in _ESCAPE.finditer(token.text):
            if not _is_escape(*escape.groups()):
                text = f"unknown escape '{escape[0]}' in {token.shown}"
                self._add(path, text, token.line, "write '\\\\' for a backslash")
                self.result.bad_escapes.append(self.result.mistakes[-1])
                return b""
        try:
            return text_encoding.CUnescape(token.text[1:-1])
        except ValueError:
            self._add(path, f"broken escape in {token.shown}", token.line)
            return b""

    def _plain(self, field: FieldDescriptor, path: str, token: Token) -> object:
        """A number, a word or a symbol."""
        value = _convert(field, token.text)
        if value is None:
            hint = f'write "{token.text}"' if field.type == FieldDescriptor.TYPE_STRING else ""
            self.result.mistakes.append(
                schema.wrong_type(field, path, token.shown, token.line, hint)
            )
        elif isinstance(value, int) and not isinstance(value, bool):
            mistake = schema.out_of_range(field, path, value, token.line)
            if mistake is not None:
                self.result.mistakes.append(mistake)
        return value

    # -- skipping

    def _skip_value(self, path: str) -> None:
        """Whatever stands where a value should be."""
        if self._token.text in _ENDS or self._starts_field():
            return
        token = self._next()
        if token.text in _CLOSER:
            self._skip_bracket(path, token)
        while token.is_string and self._token.is_string:
            self._next()

    def _skip_bracket(self, path: str, opener: Token) -> None:
        """Everything up to the bracket that closes `opener`, without recursion."""
        depth = 1
        while depth:
            token = self._next()
            if not token.text:
                self._unclosed(path, opener)
                return
            depth += (token.text in _CLOSER) - (token.text in _CLOSER.values())


class _Given:
    """The fields of one message that were seen so far."""

    def __init__(self) -> None:
        self.key: object = ""
        self._counts: dict[str, int] = {}
        self._lines: dict[str, int] = {}
        self._oneofs: dict[str, str] = {}

    def count(self, field: FieldDescriptor) -> int:
        """How many elements a repeated field had before this one."""
        count = self._counts.get(field.name, 0)
        self._counts[field.name] = count + 1
        return count

    def clashes(self, field: FieldDescriptor, path: str, line: int) -> Iterator[Mistake]:
        """What speaks against giving this single field now."""
        if field.name in self._lines:
            yield schema.given_twice(path, self._lines[field.name], line)
        if field.containing_oneof is not None:
            other = self._oneofs.setdefault(field.containing_oneof.name, field.name)
            if other != field.name:
                yield schema.one_of_many(path, field, other, line)

    def take(self, field: FieldDescriptor, line: int, value: object) -> None:
        """Note a single field. One that has its default counts as not given, as in protobuf."""
        if field.name == "key":
            self.key = value
        if field.has_presence or not _is_default(value):
            self._lines.setdefault(field.name, line)


def _is_default(value: object) -> bool:
    negative_zero = isinstance(value, float) and math.copysign(1.0, value) < 0
    return not value and value is not None and not negative_zero


def _is_escape(character: str, digits: str) -> bool:
    if character in "01234567":
        return int(character + digits, 8) < 256
    return character in "abfnrtvxuU\\'\""


def _convert(field: FieldDescriptor, text: str) -> object:
    """The value of an unquoted token, or None if it is not of the field's type."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return None
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"true": True, "t": True, "1": True, "True": True}.get(
            text, {"false": False, "f": False, "0": False, "False": False}.get(text)
        )
    if field.type in _FLOAT_TYPES:
        return _float(text)
    if field.enum_type is not None and text in field.enum_type.values_by_name:
        return field.enum_type.values_by_name[text].number
    return _integer(text)


def _integer(text: str) -> int | None:
    octal = re.fullmatch(r"(-?)0([0-9]+)", text)
    try:
        return int(f"{octal[1]}0o{octal[2]}" if octal else text, 0)
    except ValueError:
        return None


def _float(text: str) -> float | None:
    if re.match(r"-?0[0-9]+", text):
        return None
    for candidate in (text, text.removesuffix("f").removesuffix("F"), text.rstrip("fF")):
        try:
            return float(candidate)
        except ValueError:
            continue
    return None
