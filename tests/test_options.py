"""Option text, JSON and dotted keys to typed dataclasses; every error text is what QEMU 7.2 says to the same input."""

import contextlib
import dataclasses
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.errors import OptionError
from qnet.options import (
    ANY,
    BOOL,
    INT32,
    INT64,
    MAC,
    SIZE,
    STR,
    UINT16,
    UINT32,
    UINT64,
    Choice,
    FilterOptions,
    Form,
    ListOf,
    NicOptions,
    Struct,
    Union,
    check_id,
    fields_of,
    format_pairs,
    from_json,
    help_lines,
    is_id,
    opt,
    parse_bool,
    parse_keyval,
    parse_pairs,
    parse_size,
    properties,
    read_options,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inet:
    host: str = opt(STR, required=True, help="address")
    port: int = opt(UINT16, required=True, help="port")
    ipv4: bool | None = opt(BOOL, help="allow IPv4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unix:
    path: str = opt(STR, required=True, help="path of the socket")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everything:
    hubid: int = opt(INT32, default=0, help="number of the hub")
    big: int | None = opt(INT64)
    queues: int = opt(UINT32, default=1)
    poll_us: int | None = opt(UINT64)
    sndbuf: int | None = opt(SIZE, help="bytes in flight")
    restrict: bool = opt(BOOL, default=False, help="no way out")
    vnet_hdr: bool | None = opt(BOOL, name="vnet_hdr")
    mode: str = opt(Choice("native", "skb"), default="native")
    hostfwd: tuple[str, ...] = opt(ListOf(STR), help="forwards")
    addr: Inet | Unix | None = opt(Union("type", inet=Inet, unix=Unix))
    range: Inet | None = opt(Struct(Inet))
    handler: object = opt(ANY)
    mac: bytes | None = opt(MAC, extra=True)


def from_text(text: str, form: Form = Form.OPTS) -> Everything:
    if form is Form.KEYVAL:
        return read_options(Everything, form, parse_keyval(text))
    return read_options(Everything, form, parse_pairs(text), owner="e1000")


def complaint(form: Form, given: object) -> str:
    with pytest.raises(OptionError) as caught:
        from_text(given, form) if isinstance(given, str) else read_options(Everything, form, given, owner="e1000")
    return caught.value.text


# ------------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("user,id=u", [("type", "user"), ("id", "u")]),
        ("type=user,id=u", [("type", "user"), ("id", "u")]),
        ("", []),
        (",id=a", [("type", ""), ("id", "a")]),
        ("user,id=a,", [("type", "user"), ("id", "a")]),
        ("user,,id=a", [("type", "user,id=a")]),
        ("user,hostname=x=y", [("type", "user"), ("hostname", "x=y")]),
        ("user,a=1,,2,,,b=3", [("type", "user"), ("a", "1,2,"), ("b", "3")]),
        ("user,a=,,,,", [("type", "user"), ("a", ",,")]),
        ("user,a=1,a=2", [("type", "user"), ("a", "1"), ("a", "2")]),
        ("user,=3", [("type", "user"), ("", "3")]),
    ],
)
def test_text_splits_as_qemus(text, pairs):
    assert parse_pairs(text, "type") == pairs


def test_bare_names_are_booleans_and_deprecated(caplog):
    with caplog.at_level(logging.WARNING, "qnet.options"):
        assert parse_pairs("user,restrict,nodelay,no", "type")[1:] == [("restrict", "on"), ("delay", "off"), ("", "off")]
    assert "short-form boolean option 'nodelay' deprecated; please use delay=off instead" in caplog.text


names = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True)


@given(st.lists(st.tuples(names, st.text(max_size=20)), max_size=6))
def test_formatted_pairs_parse_back(pairs):
    assert parse_pairs(format_pairs(pairs)) == pairs
    assert parse_pairs(format_pairs([("type", "a,b=c"), *pairs], "type"), "type")[1:] == pairs


@given(st.text(alphabet=st.characters() | st.sampled_from(",=.01a"), max_size=60))
def test_no_text_gets_past_option_error(text):
    for form in Form:
        with contextlib.suppress(OptionError):
            from_json(text) if form is Form.JSON else from_text(text, form)


# -------------------------------------------------------------------------------------------------------------- dotted keys


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("stream,id=s,addr.type=inet,addr.host=h,,1", {"type": "stream", "id": "s", "addr": {"type": "inet", "host": "h,1"}}),
        ("type=x,l.0=a,l.1=b", {"type": "x", "l": ["a", "b"]}),
        ("x,l.1.str=b,l.0.str=a", {"type": "x", "l": [{"str": "a"}, {"str": "b"}]}),
        ("x,a=1,a=2", {"type": "x", "a": "2"}),
        ("", {}),
    ],
)
def test_dotted_keys_make_a_tree(text, tree):
    assert parse_keyval(text, "type") == tree


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("s,foo.bar=1,foo=2", "Parameters 'foo.*' used inconsistently"),
        ("s,foo=2,foo.bar=1", "Parameters 'foo.*' used inconsistently"),
        ("s,x.0=1,x.y=2", "Parameters 'x.*' used inconsistently"),
        ("s,x.0=1,x.2=2", "Parameter 'x.1' missing"),
        ("s,addr..type=1", "Invalid parameter 'addr..type'"),
        ("s,1x=1", "Invalid parameter '1x'"),
        ("s,0=1", "Invalid parameter '0'"),
        ("s,=1", "Invalid parameter ''"),
        ("s,.x=1", "Invalid parameter '.x'"),
        ("s,x.=1", "Invalid parameter 'x.'"),
        ("s,x", "Expected '=' after parameter 'x'"),
    ],
)
def test_dotted_keys_refuse(text, error):
    with pytest.raises(OptionError) as caught:
        parse_keyval(text, "type")
    assert caught.value.text == error


leaves = st.text(max_size=8)
groups = st.from_regex(r"[a-z][a-z0-9]{0,4}", fullmatch=True)
trees = st.dictionaries(
    groups,
    st.recursive(
        leaves, lambda t: st.lists(t, min_size=1, max_size=3) | st.dictionaries(groups, t, min_size=1, max_size=3), max_leaves=8
    ),
    max_size=4,
)


def flatten(node, path=""):
    if isinstance(node, str):
        return [(path, node)]
    items = node.items() if isinstance(node, dict) else ((str(i), child) for i, child in enumerate(node))
    return [pair for key, child in items for pair in flatten(child, f"{path}.{key}" if path else key)]


@given(trees)
def test_trees_survive_dotted_keys(tree):
    assert parse_keyval(format_pairs(flatten(tree))) == tree


# ------------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "text", ['{"type":"user"', "{nope}", '{"a":1,"a":2}', "[1]", '{"a":1} x', "[" * 100000, '{"a":' + "9" * 5000 + "}", '"user"', ""]
)
def test_json_refuses(text):
    with pytest.raises(OptionError, match="JSON parse error"):
        from_json(text)


@given(st.dictionaries(st.text(), st.integers() | st.booleans() | st.text() | st.lists(st.text())))
def test_json_passes_through(tree):
    assert from_json(json.dumps(tree)) == tree


# ------------------------------------------------------------------------------------------------------------------ values


def test_every_kind_from_every_form():
    expected = Everything(
        hubid=-3, queues=16, sndbuf=1536, restrict=True, vnet_hdr=False, mode="skb", hostfwd=("a", "b"), mac=bytes(range(82, 88))
    )
    common = "hubid=-3,queues=0x10,sndbuf=1.5k,restrict=yes,vnet_hdr=n,mode=skb,mac=52:53:54-55:56:57"
    assert from_text(common + ",hostfwd=a,hostfwd=b") == expected
    assert from_text(common + ",hostfwd=a,hostfwd=b", Form.DEVICE) == expected
    assert from_text(common + ",hostfwd.0=a,hostfwd.1.str=b", Form.KEYVAL) == expected
    tree = {"hubid": -3, "queues": 16, "sndbuf": 1536, "restrict": True, "vnet_hdr": False, "mode": "skb"}
    tree |= {"hostfwd": ["a", {"str": "b"}], "mac": "52:53:54:55:56:57"}
    assert read_options(Everything, Form.JSON, tree) == expected
    assert read_options(Everything, Form.DEVICE, tree) == expected


def test_python_may_use_attribute_names_and_own_objects():
    opts = read_options(Everything, Form.JSON, {"poll_us": 5, "handler": print, "mac": b"\x52\0\0\0\0\1"})
    assert (opts.poll_us, opts.handler, opts.mac) == (5, print, b"\x52\0\0\0\0\1")


def test_groups_and_unions():
    unix = from_text("addr.type=unix,addr.path=/tmp/a,,b", Form.KEYVAL)
    assert unix.addr == Unix(path="/tmp/a,b")
    inet = read_options(Everything, Form.JSON, {"addr": {"type": "inet", "host": "h", "port": 1, "ipv4": True}})
    assert inet.addr == Inet(host="h", port=1, ipv4=True)
    assert from_text("range.host=h,range.port=2", Form.KEYVAL).range == Inet(host="h", port=2)


def test_last_scalar_counts():
    assert from_text("hubid=1,hubid=2").hubid == 2
    assert from_text("hubid=1,hubid=2", Form.KEYVAL).hubid == 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("foo=1", "Invalid parameter 'foo'"),
        ("=1", "Invalid parameter ''"),
        ("foo.bar=1", "Invalid parameter 'foo.bar'"),
        ("restrict=maybe", "Parameter 'restrict' expects 'on' or 'off'"),
        ("restrict=On", "Parameter 'restrict' expects 'on' or 'off'"),
        ("restrict=1", "Parameter 'restrict' expects 'on' or 'off'"),
        ("restrict=", "Parameter 'restrict' expects 'on' or 'off'"),
        ("hubid=x", "Parameter 'hubid' expects an int64 value"),
        ("hubid=", "Parameter 'hubid' expects an int64 value"),
        ("hubid=1k", "Parameter 'hubid' expects an int64 value"),
        ("hubid=5 ", "Parameter 'hubid' expects an int64 value"),
        ("hubid=1.0", "Parameter 'hubid' expects an int64 value"),
        ("hubid=99999999999999999999", "Parameter 'hubid' expects an int64 value"),
        ("hubid=" + "9" * 5000, "Parameter 'hubid' expects an int64 value"),
        ("hubid=99999999999", "Parameter 'hubid' expects int32_t"),
        ("hubid=2147483648", "Parameter 'hubid' expects int32_t"),
        ("queues=-1", "Parameter 'queues' expects a uint64 value"),
        ("queues=1-3", "Parameter 'queues' expects a uint64 value"),
        ("queues=99999999999", "Parameter 'queues' expects uint32_t"),
        ("poll-us=x", "Parameter 'poll-us' expects a uint64 value"),
        ("sndbuf=abc", "Parameter 'sndbuf' expects a size value"),
        ("sndbuf=1Q", "Parameter 'sndbuf' expects a size value"),
        ("sndbuf=-1", "Parameter 'sndbuf' expects a size value"),
        ("sndbuf=1kk", "Parameter 'sndbuf' expects a size value"),
        ("sndbuf=", "Parameter 'sndbuf' expects a size value"),
        ("sndbuf=99999999999999999999", "Parameter 'sndbuf' expects a size value"),
        ("mode=x", "Parameter 'mode' does not accept value 'x'"),
    ],
)
def test_option_text_errors(text, error):
    assert complaint(Form.OPTS, text) == error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("foo=1", "Parameter 'foo' is unexpected"),
        ("addr=x", "Invalid parameter type for 'addr', expected: object"),
        ("addr.type=foo", "Parameter 'type' does not accept value 'foo'"),
        ("addr.host=foo", "Parameter 'addr.type' is missing"),
        ("addr.type=inet", "Parameter 'addr.host' is missing"),
        ("addr.type=unix,addr.path=/p,addr.bogus=1", "Parameter 'addr.bogus' is unexpected"),
        ("addr.type=inet,addr.host=h,addr.port=x", "Parameter 'addr.port' expects integer"),
        ("addr.type=inet,addr.host=h,addr.port=99999", "Parameter 'port' expects uint16_t"),
        ("addr.type=inet,addr.host=h,addr.port=1,addr.ipv4=x", "Parameter 'addr.ipv4' expects 'on' or 'off'"),
        ("queues=-1", "Parameter 'queues' expects uint32_t"),
        ("queues=x", "Parameter 'queues' expects integer"),
        ("queues=99999999999999999999", "Parameter 'queues' expects integer"),
        ("hostfwd=a", "Invalid parameter type for 'hostfwd', expected: array"),
        ("hubid.x=1", "Invalid parameter type for 'hubid', expected: integer"),
        ("restrict.0=on", "Invalid parameter type for 'restrict', expected: boolean"),
        ("mode.0=on", "Invalid parameter type for 'mode', expected: string"),
        ("range=1", "Invalid parameter type for 'range', expected: object"),
        ("mac=zz", "Parameter 'mac' doesn't take value 'zz'"),
    ],
)
def test_dotted_key_errors(text, error):
    assert complaint(Form.KEYVAL, text) == error


@pytest.mark.parametrize(
    ("tree", "error"),
    [
        ({"foo": 1}, "Parameter 'foo' is unexpected"),
        ({"restrict": "on"}, "Invalid parameter type for 'restrict', expected: boolean"),
        ({"restrict": 1}, "Invalid parameter type for 'restrict', expected: boolean"),
        ({"hubid": "0"}, "Invalid parameter type for 'hubid', expected: integer"),
        ({"hubid": 1.5}, "Invalid parameter type for 'hubid', expected: integer"),
        ({"hubid": True}, "Invalid parameter type for 'hubid', expected: integer"),
        ({"hubid": 9999999999999}, "Parameter 'hubid' expects int32_t"),
        ({"sndbuf": "1k"}, "Parameter 'sndbuf' expects uint64"),
        ({"sndbuf": -1}, "Parameter 'sndbuf' expects uint64"),
        ({"queues": "1"}, "Parameter 'queues' expects uint64"),
        ({"mode": 1}, "Invalid parameter type for 'mode', expected: string"),
        ({"mode": "x"}, "Parameter 'mode' does not accept value 'x'"),
        ({"hostfwd": "x"}, "Invalid parameter type for 'hostfwd', expected: array"),
        ({"hostfwd": [1]}, "Invalid parameter type for 'hostfwd[0]', expected: string"),
        ({"hostfwd": [{"str": "tcp::0-:22", "x": 1}]}, "Parameter 'hostfwd[0].x' is unexpected"),
        ({"hostfwd": [{}]}, "Parameter 'hostfwd[0].str' is missing"),
        ({"addr": {"type": "inet", "host": 5, "port": 1}}, "Invalid parameter type for 'addr.host', expected: string"),
        ({"mac": 5}, "Invalid parameter type for 'mac', expected: string"),
    ],
)
def test_json_value_errors(tree, error):
    assert complaint(Form.JSON, tree) == error


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("foo=1", "Property 'e1000.foo' not found"),
        ("mac=zz", "Property 'e1000.mac' doesn't take value 'zz'"),
        ("mac=1:2:3:4:5:6", "Property 'e1000.mac' doesn't take value '1:2:3:4:5:6'"),
        ("mac=52:54:00:12:34:56:", "Property 'e1000.mac' doesn't take value '52:54:00:12:34:56:'"),
        ("mac=", "Property 'e1000.mac' doesn't take value ''"),
        ("restrict=foo", "Parameter 'restrict' expects 'on' or 'off'"),
        ("hubid=x", "Parameter 'hubid' expects integer"),
        ("hubid=99999999999", "Parameter 'hubid' expects int32_t"),
        ({"restrict": 5}, "Invalid parameter type for 'restrict', expected: boolean"),
        ({"mac": 5}, "Invalid parameter type for 'mac', expected: string"),
        ({"foo": 5}, "Property 'e1000.foo' not found"),
        ({"queues": 1.5}, "Invalid parameter type for 'queues', expected: integer"),
    ],
)
def test_property_errors(given, error):
    assert complaint(Form.DEVICE, given) == error


def test_properties_take_strings_from_json_too():
    assert read_options(Everything, Form.DEVICE, {"hubid": "7", "restrict": "on"}) == Everything(hubid=7, restrict=True)


@pytest.mark.parametrize("form", [Form.OPTS, Form.KEYVAL, Form.JSON, Form.DEVICE])
def test_required_options(form):
    with pytest.raises(OptionError) as caught:
        read_options(Unix, form, {})
    assert (caught.value.text, caught.value.hint) == ("Parameter 'path' is missing", "path= is the path of the socket")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("restric=on", "did you mean 'restrict'?"),
        ("mode=skp", "did you mean 'skb'?"),
        ("mode=zzzz", "one of native, skb"),
        ("hubid=x", "a whole number from -2147483648 to 2147483647"),
        ("restrict=maybe", "write restrict=on or restrict=off"),
    ],
)
def test_errors_end_in_a_hint(text, hint):
    with pytest.raises(OptionError) as caught:
        from_text(text)
    assert str(caught.value).endswith("; " + hint)


# ----------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("10B", 10), ("1K", 1024), ("1k", 1024), ("1.5k", 1536), ("0x10", 16), ("2G", 2 << 30), ("15E", 15 << 60), (" 7", 7),
        ("1.K", 1024), ("0.1M", 104857), ("16E", None), ("1.5", None), ("0x10k", None), ("1e3", None), (".5k", None), ("1" * 200, None),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@given(st.integers(0, (1 << 64) - 1))
def test_sizes_round_trip(n):
    assert parse_size(str(n)) == parse_size(hex(n)) == n


@given(st.integers(-(1 << 31), (1 << 31) - 1))
def test_integers_round_trip(n):
    sign = "-" if n < 0 else ""
    for text in (str(n), hex(n), f"{sign}0{abs(n):o}"):
        assert from_text(f"hubid={text}").hubid == n


@pytest.mark.parametrize(("text", "n"), [(" 5", 5), ("+5", 5), ("010", 8), ("0", 0), ("0X1f", 31)])
def test_integers_as_c_reads_them(text, n):
    assert from_text(f"hubid={text}").hubid == n


def test_booleans():
    assert [parse_bool(t) for t in ("on", "yes", "true", "y")] == [True] * 4
    assert [parse_bool(t) for t in ("off", "no", "false", "n")] == [False] * 4
    assert [parse_bool(t) for t in ("", "1", "0", "ON", "t", " on")] == [None] * 6


@pytest.mark.parametrize(("text", "ok"), [("a", True), ("n0", True), ("a-b.c_9", True), ("", False), ("1a", False), ("a%", False),
                                          ("a b", False), ("é", False), ("a\n", False), ("#net0", False)])  # fmt: skip
def test_identifiers(text, ok):
    assert is_id(text) is ok
    if not ok:
        with pytest.raises(OptionError, match="Parameter 'id' expects an identifier; identifiers consist of letters"):
            check_id(text)


# ------------------------------------------------------------------------------------------------------- what follows from it


def test_names_follow_attributes():
    assert {name: spec.attribute for name, spec in fields_of(Everything).items() if name != spec.attribute} == {"poll-us": "poll_us"}


def test_properties_print_as_info_network():
    """M12: own properties first, then the filter's common ones; extra ones only when set."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Dump(FilterOptions):
        file: str = opt(STR, required=True)
        maxlen: int = opt(UINT32, default=65536)
        ns: bool = opt(BOOL, default=False, extra=True)

    opts = read_options(Dump, Form.KEYVAL, parse_keyval("netdev=u,file=/dev/null"))
    line = ",".join(f"{k}={v}" for k, v in properties(opts))
    assert line == "file=/dev/null,maxlen=65536,position=tail,status=on,insert=behind,netdev=u,queue=all"
    assert ("ns", "on") in properties(dataclasses.replace(opts, ns=True))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "Parameter 'netdev' is missing"),
        ("netdev=u,queue=x", "Parameter 'queue' does not accept value 'x'"),
        ("netdev=u,insert=x", "Parameter 'insert' does not accept value 'x'"),
        ("netdev=u,status=x", "Invalid value for netfilter status, should be 'on' or 'off'"),
        ("netdev=u,position=x", "Parameter 'position' expects 'head', 'tail' or 'id=<id>'"),
        ("netdev=u,position=id=", "Parameter 'position' expects 'head', 'tail' or 'id=<id>'"),
    ],
)
def test_filter_options(text, error):
    """F1, F3."""
    with pytest.raises(OptionError) as caught:
        read_options(FilterOptions, Form.KEYVAL, parse_keyval(text))
    assert caught.value.text == error


def test_nic_options():
    opts = read_options(NicOptions, Form.DEVICE, parse_pairs("netdev=u,mac=52-54-00-12-34-56"), owner="e1000")
    assert opts == NicOptions(netdev="u", mac=bytes.fromhex("525400123456"))


def test_help_lists_every_option():
    lines = help_lines(Everything)
    assert [line.split("=")[0].strip() for line in lines] == sorted(fields_of(Everything))
    assert "  restrict=<bool>        - no way out (default: off)" in lines
    assert "  path=<str>             - path of the socket (required)" in help_lines(Unix)
