"""QEMU's option strings, their JSON and dotted-key forms, and the typed dataclasses they fill.

A kind of backend, NIC or filter declares its options once:

    @dataclass(frozen=True, kw_only=True)
    class Options:
        hubid: int = opt(INT32, required=True, help="number of the hub")
        netdev: str | None = opt(STR, help="id of a netdev to plug into the port")

and everything else follows from that: parsing, checking, the error texts, help and documentation. There are four ways in, which
differ in what values look like and in QEMU's error texts:

    OPTS    "user,id=u,hostfwd=a,hostfwd=b"         -netdev, -nic, -net; a list is an option given several times
    KEYVAL  "stream,id=s,addr.type=unix,addr.path=p"   dotted keys: stream, dgram; a list is hosts.0=a,hosts.1=b
    JSON    '{"type": "user", "id": "u", "restrict": true}', a dict or keyword arguments: values have their own types
    DEVICE  "e1000,netdev=u,mac=..." or the JSON form of it: -device properties
"""

import dataclasses
import difflib
import enum
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, cast

from qnet.errors import OptionError

__all__ = [
    "ANY", "BOOL", "INT32", "INT64", "MAC", "SIZE", "STR", "UINT16", "UINT32", "UINT64", "Choice", "FilterOptions", "Form", "Kind",
    "ListOf", "NicOptions", "Opt", "Position", "Struct", "Union", "check_id", "fields_of", "format_pairs", "from_json", "help_lines",
    "is_id", "opt", "parse_bool", "parse_keyval", "parse_pairs", "parse_size", "properties", "read_options",
]

log = logging.getLogger("qnet.options")

T = TypeVar("T")
Pairs = list[tuple[str, str]]
ID_HINT = "identifiers consist of letters, digits, '-', '.', '_', starting with a letter"


class Form(enum.Enum):
    """Where values come from; see the module's text."""

    OPTS = "opts"
    KEYVAL = "keyval"
    JSON = "json"
    DEVICE = "device"


# ------------------------------------------------------------------------------------------------------------ text to pairs


def is_id(text: str) -> bool:
    """A well-formed id: a letter, then letters, digits, '-', '.', '_'."""
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text) is not None


def check_id(text: str) -> str:
    """`text` itself, or OptionError with QEMU's text (S57)."""
    if not is_id(text):
        raise OptionError("Parameter 'id' expects an identifier", ID_HINT)
    return text


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that starts at `at`, with ",," for a comma in it, and the position behind its end and one comma."""
    out = []
    while True:
        comma = text.find(",", at)
        if comma < 0:
            out.append(text[at:])
            return "".join(out), len(text)
        out.append(text[at:comma])
        if text[comma + 1 : comma + 2] != ",":
            return "".join(out), comma + 1
        out.append(",")
        at = comma + 2


def parse_pairs(text: str, implied: str | None = None, *, warn: bool = True) -> Pairs:
    """QEMU's option syntax to (name, value) pairs, in order: "user,id=u" with implied="type" gives type=user, id=u.

    A name alone means name=on, and noname means name=off; both are deprecated in QEMU and here, and logged.
    """
    pairs: Pairs = []
    at = 0
    while at < len(text):
        m = re.compile(r"[^=,]*").match(text, at)
        assert m is not None
        name, end = m[0], m.end()
        if text[end : end + 1] == "=":
            value, at = _value(text, end + 1)
        elif not pairs and implied is not None:
            name = implied
            value, at = _value(text, at)
        else:
            at = end + 1
            short, name, value = name, name.removeprefix("no"), "off" if name.startswith("no") else "on"
            if warn:
                log.warning("short-form boolean option '%s' deprecated; please use %s=%s instead", short, name, value)
        pairs.append((name, value))
    return pairs


def format_pairs(pairs: Iterable[tuple[str, str]], implied: str | None = None) -> str:
    """The inverse of parse_pairs: text with every comma in a value doubled. A first pair named `implied` loses its name."""
    out: list[str] = []
    for name, value in pairs:
        value = value.replace(",", ",,")
        out.append(value if not out and name == implied else f"{name}={value}")
    return ",".join(out)


_FRAGMENT = re.compile(r"(?:__[A-Za-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*|[0-9]+")


def parse_keyval(text: str, implied: str | None = None) -> dict[str, Any]:
    """Dotted keys to a tree: "a.b=1,a.c.0=2" gives {"a": {"b": "1", "c": ["2"]}}. Of a key given twice the last value counts."""
    root: dict[str, Any] = {}
    at = 0
    first = True
    while at < len(text):
        m = re.compile(r"[^=,]*").match(text, at)
        assert m is not None
        key, end = m[0], m.end()
        if text[end : end + 1] == "=":
            value, at = _value(text, end + 1)
        elif first and implied is not None:
            key = implied
            value, at = _value(text, at)
        else:
            raise OptionError(f"Expected '=' after parameter '{key}'", f"write {key}=on" if key else "")
        first = False
        _plant(root, key, value)
    return cast(dict[str, Any], _lists(root, ""))


def _plant(root: dict[str, Any], key: str, value: str) -> None:
    fragments = key.split(".")
    if not all(_FRAGMENT.fullmatch(f) for f in fragments) or fragments[0].isdigit():
        raise OptionError(f"Invalid parameter '{key}'", "a key is names and list positions, joined by dots: addr.type, dnssearch.0")
    node = root
    for i, fragment in enumerate(fragments[:-1]):
        child = node.setdefault(fragment, {})
        if not isinstance(child, dict):
            _inconsistent(fragments[: i + 1])
        node = child
    if isinstance(node.get(fragments[-1]), dict):
        _inconsistent(fragments)
    node[fragments[-1]] = value


def _inconsistent(path: Sequence[str]) -> NoReturn:
    name = ".".join(path)
    raise OptionError(f"Parameters '{name}.*' used inconsistently", f"either one value {name}=, a list {name}.0= or a group {name}.x=")


def _lists(node: Any, path: str) -> Any:
    """Groups whose keys are all numbers are lists."""
    if not isinstance(node, dict):
        return node
    prefix = f"{path}." if path else ""
    tree = {key: _lists(child, prefix + key) for key, child in node.items()}
    numbers = [key for key in tree if key.isdigit()]
    if not numbers:
        return tree
    if len(numbers) < len(tree):
        _inconsistent(path.split("."))
    by_index = {int(key): child for key, child in tree.items()}
    for i in range(len(tree)):
        if i not in by_index:
            raise OptionError(f"Parameter '{prefix}{i}' missing", "positions of a list count from 0 without gaps")
    return [by_index[i] for i in range(len(tree))]


def from_json(text: str) -> dict[str, Any]:
    """The JSON form; OptionError when it is not one object, or names a member twice."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise OptionError("JSON parse error, duplicate key")
        return dict(pairs)

    try:
        tree = json.loads(text, object_pairs_hook=members)
    except OptionError:
        raise
    except json.JSONDecodeError as e:
        raise OptionError(f"JSON parse error, {e.msg}", f"at character {e.pos}") from None
    except (ValueError, RecursionError) as e:           # a number of thousands of digits; thousands of brackets
        raise OptionError(f"JSON parse error, {e}") from None
    if not isinstance(tree, dict):
        raise OptionError("JSON parse error, expected an object", 'such as {"type": "user", "id": "n0"}')
    return tree


# -------------------------------------------------------------------------------------------------------------- value kinds


def parse_bool(text: str) -> bool | None:
    """on, yes, true, y; off, no, false, n; else None."""
    return {"on": True, "yes": True, "true": True, "y": True, "off": False, "no": False, "false": False, "n": False}.get(text)


def _parse_int(text: str) -> int | None:
    """C's strtol with base 0 over the whole text: decimal, 0x1f, 017."""
    if len(text) > 100:
        return None
    m = re.fullmatch(r"\s*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))", text, re.ASCII)
    if m is None:
        return None
    number = int(m[2], 16) if m[2] else int(m[3], 8) if m[3] else int(m[4])
    return -number if m[1] == "-" else number


def parse_size(text: str) -> int | None:
    """Bytes: a number with an optional fraction and suffix B, K, M, G, T, P or E (powers of 1024); None when it is not one."""
    if len(text) > 100:
        return None
    m = re.fullmatch(r"\s*\+?(?:0[xX]([0-9a-fA-F]+)|([0-9]+)(?:\.([0-9]*))?([bBkKmMgGtTpPeE]?))", text, re.ASCII)
    if m is None:
        return None
    if m[1]:
        size = int(m[1], 16)
    else:
        unit = 1024 ** "BKMGTPE".index((m[4] or "B").upper())
        if m[3] and unit == 1:
            return None
        size = int(m[2]) * unit + (int(m[3]) * unit // 10 ** len(m[3]) if m[3] else 0)
    return size if size < 1 << 64 else None


class _PropertyError(OptionError):
    """A value that QEMU refuses with "Property 'e1000.mac' doesn't take value 'x'"."""


class Kind:
    """The type of an option's value: reads it from any form, and says its name in help."""

    label = "str"

    def read(self, form: Form, path: str, value: Any) -> Any:
        """`value` as the option's Python type. `path` is the option's name, dotted for members, for the error text."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """The value as QEMU prints it in help and `info network`."""
        return str(value)


def _wrong_type(path: str, expected: str, hint: str = "") -> NoReturn:
    raise OptionError(f"Invalid parameter type for '{path}', expected: {expected}", hint)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _text(form: Form, path: str, value: Any, expected: str) -> str | None:
    """The text to parse, or None when the value has its own type already."""
    if form is Form.JSON or (form is Form.DEVICE and not isinstance(value, str)):
        return None
    if not isinstance(value, str):
        _wrong_type(path, expected)
    return value


class _Str(Kind):
    def read(self, form: Form, path: str, value: Any) -> str:
        if not isinstance(value, str):
            _wrong_type(path, "string", f'write "{value}"' if isinstance(value, int | float) else "")
        return value


class _Any(Kind):
    label = "any"

    def read(self, form: Form, path: str, value: Any) -> Any:
        return value


class _Bool(Kind):
    label = "bool"

    def read(self, form: Form, path: str, value: Any) -> bool:
        text = _text(form, path, value, "boolean")
        if text is None:
            if not isinstance(value, bool):
                _wrong_type(path, "boolean", "write true or false, without quotes, or True or False")
            return value
        parsed = parse_bool(text)
        if parsed is None:
            raise OptionError(f"Parameter '{path}' expects 'on' or 'off'", f"write {path}=on or {path}=off")
        return parsed

    def show(self, value: Any) -> str:
        return "on" if value else "off"


class _Int(Kind):
    def __init__(self, bits: int, signed: bool) -> None:
        self.label = f"{'' if signed else 'u'}int{bits}"
        self.low = -(1 << bits - 1) if signed else 0
        self.high = (1 << bits - 1) - 1 if signed else (1 << bits) - 1
        self.signed = signed
        self.bits = bits

    def read(self, form: Form, path: str, value: Any) -> int:
        text = _text(form, path, value, "integer")
        number = value if text is None else _parse_int(text)
        if text is None and (isinstance(value, bool) or not isinstance(value, int)):
            if self.signed or form is Form.DEVICE or not isinstance(value, str):
                _wrong_type(path, "integer", "write the number without quotes" if isinstance(value, str) else "")
            raise OptionError(f"Parameter '{path}' expects uint64", "write the number without quotes")
        low = 0 if form is Form.OPTS and not self.signed else -1 << 63
        high = (1 << 63) - 1 if self.signed else (1 << 64) - 1
        if number is None or not low <= number <= high:
            if form is Form.OPTS:
                raise OptionError(f"Parameter '{path}' expects {'an int64' if self.signed else 'a uint64'} value", self.hint)
            raise OptionError(f"Parameter '{path}' expects integer", self.hint)
        if not self.low <= number <= self.high:
            raise OptionError(f"Parameter '{_leaf(path)}' expects {self.label}{'_t' if self.bits < 64 else ''}", self.hint)
        return int(number)

    @property
    def hint(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


class _Size(Kind):
    label = "size"

    def read(self, form: Form, path: str, value: Any) -> int:
        text = _text(form, path, value, "integer")
        if text is None:
            return UINT64.read(form, path, value)
        size = parse_size(text)
        if size is None:
            raise OptionError(f"Parameter '{path}' expects a size value", "bytes, or with a suffix: 512, 64K, 1.5M, 2G")
        return size


class _Mac(Kind):
    """An Ethernet address as a NIC's property: six pairs of hex digits joined by ':' or '-' (M3); bytes from Python."""

    label = "str"

    def read(self, form: Form, path: str, value: Any) -> bytes:
        if isinstance(value, bytes | bytearray) and len(value) == 6:
            return bytes(value)
        if not isinstance(value, str):
            _wrong_type(path, "string", 'such as "52:54:00:12:34:56"')
        if re.fullmatch(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}", value) is None:
            raise _PropertyError(f"Parameter '{path}' doesn't take value '{value}'", "six pairs of hex digits: 52:54:00:12:34:56")
        return bytes.fromhex(value.replace(":", "").replace("-", ""))

    def show(self, value: Any) -> str:
        return ":".join(f"{byte:02x}" for byte in value)


class Choice(Kind):
    """One of a few words. complaint: QEMU's text where it has one of its own."""

    def __init__(self, *words: str, complaint: str = "") -> None:
        self.words = words
        self.label = "|".join(words)
        self.complaint = complaint

    def read(self, form: Form, path: str, value: Any) -> str:
        text = STR.read(form, path, value)
        if text not in self.words:
            near = difflib.get_close_matches(text, self.words, 1)
            raise OptionError(
                self.complaint or f"Parameter '{_leaf(path)}' does not accept value '{text}'",
                f"did you mean '{near[0]}'?" if near else f"one of {', '.join(self.words)}",
            )
        return text


class ListOf(Kind):
    """A list of one kind: the option given several times (OPTS), name.0=, name.1= (KEYVAL), an array (JSON).

    QEMU wraps strings of such lists as {"str": "..."} in JSON; here a plain string will do as well.
    """

    def __init__(self, item: Kind) -> None:
        self.item = item
        self.label = f"{item.label}, may be repeated"

    def read(self, form: Form, path: str, value: Any) -> tuple[Any, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            _wrong_type(path, "array", f'a list: ["{value}"]' if isinstance(value, str) else "")
        return tuple(self._item(form, f"{path}[{i}]" if form is Form.JSON else path, item) for i, item in enumerate(value))

    def _item(self, form: Form, path: str, item: Any) -> Any:
        if isinstance(item, Mapping) and self.item in (STR, ANY):
            for key in item:
                if key != "str":
                    raise OptionError(f"Parameter '{path}.{key}' is unexpected")
            if "str" not in item:
                raise OptionError(f"Parameter '{path}.str' is missing")
            return self.item.read(form, f"{path}.str", item["str"])
        return self.item.read(form, path, item)

    def show(self, value: Any) -> str:
        return ",".join(self.item.show(item) for item in value)


class Position(Kind):
    """A filter's place in its chain."""

    label = "head|tail|id=ID"

    def read(self, form: Form, path: str, value: Any) -> str:
        text = STR.read(form, path, value)
        if text not in ("head", "tail") and not is_id(text.removeprefix("id=") if text.startswith("id=") else ""):
            raise OptionError(f"Parameter '{path}' expects 'head', 'tail' or 'id=<id>'")
        return text


class Struct(Kind):
    """A group of options, held by a dataclass like a kind's own."""

    label = "group"

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def read(self, form: Form, path: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            _wrong_type(path, "object", f"write {path}.name=value for each of its members")
        return _read(self.cls, form, value, path)


class Union(Kind):
    """A group whose member `tag` says which dataclass holds the others: addr.type=unix,addr.path=/p."""

    label = "group"

    def __init__(self, tag: str, **branches: type) -> None:
        self.tag = tag
        self.branches = branches

    def read(self, form: Form, path: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            _wrong_type(path, "object", f"write {path}.{self.tag}=... and its other members")
        rest = dict(value)
        if self.tag not in rest:
            raise OptionError(f"Parameter '{path}.{self.tag}' is missing", f"one of {', '.join(self.branches)}")
        branch = Choice(*self.branches).read(form, f"{path}.{self.tag}", rest.pop(self.tag))
        return _read(self.branches[branch], form, rest, path)


STR = _Str()
ANY = _Any()                        # text from options; any object from Python
BOOL = _Bool()
INT32 = _Int(32, True)
INT64 = _Int(64, True)
UINT16 = _Int(16, False)
UINT32 = _Int(32, False)
UINT64 = _Int(64, False)
SIZE = _Size()
MAC = _Mac()


# ---------------------------------------------------------------------------------------------------------------- dataclasses


@dataclasses.dataclass(frozen=True)
class Opt:
    """What one option is: its kind, its name in QEMU, whether it must be given, one line of help; extra: not in QEMU."""

    kind: Kind
    name: str
    required: bool
    help: str
    extra: bool
    attribute: str = ""
    default: Any = None


def opt(
    kind: Kind, *, default: Any = None, required: bool = False, name: str = "", help: str = "", extra: bool = False
) -> Any:
    """A dataclass field that is an option. Its QEMU name is the attribute's with '-' for '_' unless `name` says otherwise."""
    spec = Opt(kind, name, required, help, extra)
    if isinstance(kind, ListOf) and default is None:
        default = ()
    return dataclasses.field(default=dataclasses.MISSING if required else default, metadata={"opt": spec})


def fields_of(cls: type) -> dict[str, Opt]:
    """QEMU name -> Opt of each option of a dataclass, its own before those of its bases."""
    inherited = {f.name for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) for f in dataclasses.fields(base)}
    out = {}
    for f in sorted(dataclasses.fields(cls), key=lambda f: f.name in inherited):
        spec: Opt = f.metadata["opt"]
        name = spec.name or f.name.replace("_", "-")
        out[name] = dataclasses.replace(
            spec, name=name, attribute=f.name, default=None if f.default is dataclasses.MISSING else f.default
        )
    return out


def _unknown(form: Form, name: str, known: Iterable[str], path: str, owner: str) -> NoReturn:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}" if names else "it takes no options"
    if form is Form.OPTS:
        raise OptionError(f"Invalid parameter '{name}'", hint)
    if form is Form.DEVICE:
        raise OptionError(f"Property '{owner}.{name}' not found", hint)
    raise OptionError(f"Parameter '{path}{name}' is unexpected", hint)


def _read(cls: type[T], form: Form, tree: Mapping[str, Any], path: str = "", owner: str = "") -> T:
    specs = fields_of(cls)
    prefix = f"{path}." if path else ""
    values: dict[str, Any] = {}
    place = {f.name: i for i, f in enumerate(dataclasses.fields(cls))}  # type: ignore[arg-type]
    for name, spec in sorted(specs.items(), key=lambda item: place[item[1].attribute]):     # those of the bases first, as QEMU reads them
        if name in tree:
            try:
                values[spec.attribute] = spec.kind.read(form, prefix + name, tree[name])
            except _PropertyError as e:
                raise OptionError(f"Property '{owner}.{name}' doesn't take value '{tree[name]}'" if owner else e.text, e.hint) from None
        elif spec.required:
            raise OptionError(f"Parameter '{prefix}{name}' is missing", spec.help and f"{name}= is the {spec.help}")
    for name in tree:
        if name not in specs:
            _unknown(form, name, specs, prefix, owner)
    return cls(**values)


def read_options(cls: type[T], form: Form, values: Pairs | Mapping[str, Any], owner: str = "") -> T:
    """Fill the dataclass `cls`; OptionError with QEMU's text for what does not fit.

    values: pairs from parse_pairs (OPTS, DEVICE: of a scalar given twice the last counts), a tree from parse_keyval (KEYVAL) or
    named values (JSON, DEVICE). Names from Python may be the attributes'. owner: the device's name in DEVICE's texts.
    """
    specs = fields_of(cls)
    if isinstance(values, Mapping):
        by_attribute = {spec.attribute: name for name, spec in specs.items()}
        tree = {name if name in specs else by_attribute.get(name, name): value for name, value in values.items()}
    else:
        tree = {}
        for name, text in values:
            if name in specs and isinstance(specs[name].kind, ListOf):
                tree.setdefault(name, []).append(text)
            else:
                tree[name] = text
    return _read(cls, form, tree, owner=owner)


def properties(options: object) -> list[tuple[str, str]]:
    """(name, value) of each option that QEMU would print: all of its own, and of the extra ones those that were given."""
    out = []
    for name, spec in fields_of(type(options)).items():
        value = getattr(options, spec.attribute)
        if value is not None and not (spec.extra and value == spec.default):
            out.append((name, spec.kind.show(value)))
    return out


def help_lines(cls: type, hide: Callable[[str], bool] = lambda name: False) -> list[str]:
    """One line for each option: name=<kind>, what it is, its default; in alphabetical order, as QEMU's -device NAME,help."""
    lines = []
    for name, spec in sorted(fields_of(cls).items()):
        if hide(name):
            continue
        default = "" if spec.default is None or spec.default == () else f" (default: {spec.kind.show(spec.default)})"
        what = " - ".join(part for part in (f"  {name}=<{spec.kind.label}>".ljust(24), spec.help) if part)
        lines.append(what.rstrip() + (" (required)" if spec.required else default))
    return lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class NicOptions:
    """What every NIC model has."""

    mac: bytes | None = opt(MAC, help="Ethernet address; the next free one of 52:54:00:12:34:56 and up when not given")
    netdev: str | None = opt(STR, help="id of the netdev it is linked to")
    bootindex: int | None = opt(INT32, help="place in the VMM's boot order")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What every filter has (F1)."""

    position: str = opt(Position(), default="tail", help="place in the chain: head, tail or id=ID of another filter")
    status: str = opt(
        Choice("on", "off", complaint="Invalid value for netfilter status, should be 'on' or 'off'"),
        default="on",
        help="off: packets pass untouched",
    )
    insert: str = opt(Choice("before", "behind"), default="behind", help="side of the filter that position names")
    netdev: str = opt(STR, required=True, help="id of the netdev to watch")
    queue: str = opt(Choice("all", "rx", "tx"), default="all", help="rx: packets to the netdev; tx: packets it sends")
