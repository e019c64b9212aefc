"""What users write to say what they want, split into a form and its values: text, JSON, a mapping, keywords (facts M9, M10)."""

from collections.abc import Collection, Mapping
from typing import Any

from qnet.errors import OptionError
from qnet.options import ID_HINT, Form, Pairs, from_json, parse_keyval, parse_pairs

__all__ = ["Spec", "Values", "has_dotted_keys", "ipv6_net", "last", "split", "take"]

Spec = str | Mapping[str, Any] | None
Values = Pairs | dict[str, Any]


def split(spec: Spec, options: Mapping[str, Any], implied: str, *, dotted: bool = False) -> tuple[Form, Values]:
    """The form, and its values: pairs (OPTS) or a dict (KEYVAL, JSON).

    options: keyword arguments; None counts as not given. implied: the option whose name the text's first part may leave out.
    dotted: text has dotted keys.
    """
    keywords = {implied if key.replace("_", "-") == implied else key: value for key, value in options.items() if value is not None}
    if isinstance(spec, Mapping):
        return Form.JSON, {**spec, **keywords}
    if spec is None:
        return Form.JSON, keywords
    if spec.startswith("{"):
        return Form.JSON, {**from_json(spec), **keywords}
    if options:
        if "," in spec or "=" in spec:
            raise OptionError(f"options given as text ('{spec}') and as keywords", "use one of the two")
        return Form.JSON, {implied: spec, **keywords}
    if dotted:
        return Form.KEYVAL, parse_keyval(spec, implied)
    return Form.OPTS, parse_pairs(spec, implied)


def has_dotted_keys(spec: Spec, kinds: Collection[str]) -> bool:
    """Whether the text of a -netdev is of one of `kinds`, which have dotted keys (M9)."""
    return isinstance(spec, str) and last(parse_pairs(spec, "type", warn=False), "type") in kinds


def take(values: Values, key: str, *, latest: bool = False) -> str | None:
    """Remove `key`; its value, of pairs the first one or the `latest`, or None."""
    if isinstance(values, dict):
        if key not in values:
            return None
        value = values.pop(key)
        if not isinstance(value, str):
            raise OptionError(f"Invalid parameter type for '{key}', expected: string", ID_HINT if key == "id" else "")
        return value
    found = [value for name, value in values if name == key]
    values[:] = [(name, value) for name, value in values if name != key]
    return found[-1 if latest else 0] if found else None


def last(pairs: Pairs, key: str) -> str | None:
    """The last value of `key`, or None."""
    return next((value for name, value in reversed(pairs) if name == key), None)


def ipv6_net(pairs: Pairs) -> Pairs:
    """ipv6-net=prefix[/len] stands for ipv6-prefix and ipv6-prefixlen (M10)."""
    net = last(pairs, "ipv6-net")
    if net is None:
        return pairs
    prefix, slash, length = net.partition("/")
    if slash and not (length.isascii() and length.isdigit() and len(length) < 20):
        raise OptionError("Parameter 'ipv6-prefixlen' expects a number", "write ipv6-net=fec0::/64")
    rest = [(name, value) for name, value in pairs if name != "ipv6-net"]
    return [*rest, ("ipv6-prefix", prefix), ("ipv6-prefixlen", length or "64")]
