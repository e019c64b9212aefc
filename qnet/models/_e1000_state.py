"""The e1000's state as bytes: QEMU's migration section "e1000" version 2, then a subsection with what QEMU does not keep.

Order and widths are fact 4.10's; everything is big-endian but the version of the PCI part. A stream without our subsection loads too,
by QEMU's rules (V2): a mitigation window ends at once, unfinished auto-negotiation starts again.
"""

import struct
from typing import Any

from qnet.errors import Error

__all__ = ["pack", "unpack"]

# The registers that stand in the section by name, in QEMU's order.
NAMED = {
    "CTRL": 0x0000, "EECD": 0x0010, "EERD": 0x0014, "GPRC": 0x4074, "GPTC": 0x4080, "ICR": 0x00C0, "ICS": 0x00C8, "IMC": 0x00D8,
    "IMS": 0x00D0, "LEDCTL": 0x0E00, "MANC": 0x5820, "MDIC": 0x0020, "MPC": 0x4010, "PBA": 0x1000, "RCTL": 0x0100, "RDBAH": 0x2804,
    "RDBAL": 0x2800, "RDH": 0x2810, "RDLEN": 0x2808, "RDT": 0x2818, "STATUS": 0x0008, "SWSM": 0x5B50, "TCTL": 0x0400, "TDBAH": 0x3804,
    "TDBAL": 0x3800, "TDH": 0x3810, "TDLEN": 0x3808, "TDT": 0x3818, "TORH": 0x40C4, "TORL": 0x40C0, "TOTH": 0x40CC, "TOTL": 0x40C8,
    "TPR": 0x40D0, "TPT": 0x40D4, "TXDCTL": 0x3828, "WUFC": 0x5808, "VET": 0x0038,
}  # fmt: skip
INDICES = [*(offset >> 2 for offset in NAMED.values()), *range(0x5400 >> 2, (0x5400 >> 2) + 32)]
INDICES += [*range(0x5200 >> 2, (0x5200 >> 2) + 128), *range(0x5600 >> 2, (0x5600 >> 2) + 128)]
MIT = {"RDTR": 0x2820, "RADV": 0x282C, "TADV": 0x382C, "ITR": 0x00C4}
RCTL, STATUS = 0x0100 >> 2, 0x0008 >> 2
MAC_REGS = 0x8000

VERSION = 2
PCI = struct.Struct("<i256s16s")  # version, configuration space, levels of INTA to INTD (big-endian, only the first is used)
HEAD = struct.Struct(">IIIIHHHI")  # unused, rxbuf_size, rxbuf_min_shift, eecd: val_in, bitnum_in, bitnum_out, reading, old_eecd
CONTEXT = struct.Struct(">BBHBBHIBH")  # ipcss, ipcso, ipcse, tucss, tucso, tucse, paylen, hdr_len, mss
PACKET = struct.Struct(">HHBbb256s65536s")  # size, tso_frames, sum_needed, ip, tcp, header, data
WORDS = struct.Struct(">64H32H")  # EEPROM, PHY
REGISTERS = struct.Struct(f">{len(INDICES)}I")
MIT_STATE = struct.Struct(">4IB")
FULL_MAC = struct.Struct(f">{MAC_REGS}I")
TSO_STATE = struct.Struct(">BBHBBHIBHbb")
# io_addr, packet size, descriptors of it, flags, tag, window left, auto-negotiation left, RCTL pause left (ns, -1: not set), PHY status
OURS = struct.Struct(">IIIIHqqqH")
FLAGS = ("lost", "tse", "vlan", "window", "ide", "link_down")

SUBSECTION = 5
PHY_CTRL, PHY_STATUS = 0, 1
AN_ENABLED, AN_DONE, LINK_UP = 0x1000, 0x0020, 0x2
AN_NS = 500_000_000


def _subsection(name: str, body: bytes) -> bytes:
    raw = f"e1000/{name}".encode()
    return bytes([SUBSECTION, len(raw)]) + raw + struct.pack(">I", 1) + body


def pack(state: dict[str, Any], config: bytes, *, mitigation: bool, full_mac: bool, tso: bool) -> bytes:
    """A chip's get_state() and its configuration space as one stream; the flags say which of QEMU's subsections it has."""
    mac, phy, packet = state["mac"], list(state["phy"]), state["packet"]
    status = phy[PHY_STATUS]
    if state["link_down"] and phy[PHY_CTRL] & AN_ENABLED:
        phy[PHY_STATUS] |= AN_DONE  # V1: down, not negotiating
    *sums, ip, tcp = state["sum_ctx"]
    out = [
        PCI.pack(2, config, struct.pack(">4I", state["line"], 0, 0, 0)),
        HEAD.pack(0, state["rx_bufsize"], state["rx_min_shift"], state["ee_in"], state["ee_bits_in"], state["ee_bits_out"],
                  state["ee_reading"], state["ee_last"]),
        CONTEXT.pack(*sums),
        PACKET.pack(min(len(packet), 0xFFFF), 0, state["popts"], ip, tcp, packet[:256], packet[:65536]),
        WORDS.pack(*state["eeprom"], *phy),
        REGISTERS.pack(*(mac[i] for i in INDICES)),
    ]  # fmt: skip
    if mitigation:
        out.append(_subsection("mit_state", MIT_STATE.pack(*(mac[at >> 2] for at in MIT.values()), state["line"])))
    if full_mac:
        out.append(_subsection("full_mac_state", FULL_MAC.pack(*mac)))
    if tso:
        out.append(_subsection("tx_tso_state", TSO_STATE.pack(*state["tso_ctx"])))
    flags = sum(1 << i for i, name in enumerate(FLAGS) if state[name])
    ours = OURS.pack(state["io_addr"], len(packet), state["descs"], flags, state["vlan_tci"], state["mit_left"], state["an_left"],
                     state["rx_left"], status)  # fmt: skip
    out.append(_subsection("qnet_state", ours + packet[65536:]))
    return b"".join(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise Error("e1000 state ends too early", f"{len(self.data)} bytes; is it what save() returned?")
        self.at += n
        return self.data[self.at - n : self.at]

    def read(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))


def unpack(data: bytes, present: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A stream as (state for set_state(), configuration space). present: the chip's own get_state(), for what the stream leaves out.

    Raises Error for anything that no save() makes; nothing has changed then.
    """
    r = _Reader(data)
    version, config, _ = r.read(PCI)
    if version != 2:
        raise Error(f"unknown version {version} of the PCI part of an e1000 state")
    state = dict(present)
    _, bufsize, shift, ee_in, bits_in, bits_out, reading, ee_last = r.read(HEAD)
    sums = r.read(CONTEXT)
    size, _, popts, ip, tcp, _, body = r.read(PACKET)
    words = r.read(WORDS)
    mac = list(present["mac"])
    for i, value in zip(INDICES, r.read(REGISTERS), strict=True):
        mac[i] = value
    context = (*sums, int(bool(ip)), int(bool(tcp)))
    state.update(
        rx_bufsize=bufsize, rx_min_shift=shift, ee_in=ee_in, ee_bits_in=bits_in, ee_bits_out=bits_out, ee_reading=bool(reading),
        ee_last=ee_last, sum_ctx=context, tso_ctx=context, packet=body[:size], popts=popts & 3, eeprom=list(words[:64]),
        phy=list(words[64:]), line=0, descs=int(size > 0), lost=False, tse=False, vlan=False, vlan_tci=0, window=False, ide=False,
        io_addr=0, mit_left=-1, an_left=-1, rx_left=-1,
    )  # fmt: skip
    if bufsize not in (256, 512, 1024, 2048, 4096, 8192, 16384):
        raise Error(f"an e1000 has no receive buffers of {bufsize} bytes")
    if not 1 <= shift <= 4:
        raise Error(f"an e1000 has no receive threshold of 1/2^{shift}")
    exact = False
    while r.at < len(data):
        if r.take(1)[0] != SUBSECTION:
            raise Error("e1000 state has something behind its end")
        name = r.take(r.take(1)[0])
        (version,) = r.read(struct.Struct(">I"))
        if version != 1:
            raise Error(f"unknown version {version} of {name.decode(errors='replace')}")
        if name == b"e1000/mit_state":
            *values, line = r.read(MIT_STATE)
            for at, value in zip(MIT.values(), values, strict=True):
                mac[at >> 2] = value
            state.update(line=int(bool(line)), window=True, mit_left=1)
        elif name == b"e1000/full_mac_state":
            mac = list(r.read(FULL_MAC))
        elif name == b"e1000/tx_tso_state":
            *values, ip, tcp = r.read(TSO_STATE)
            state["tso_ctx"] = (*values, int(bool(ip)), int(bool(tcp)))
        elif name == b"e1000/qnet_state":
            _read_ours(r, state, body)
            exact = True
        else:
            raise Error(f"unknown part '{name.decode(errors='replace')}' in an e1000 state")
    state["mac"] = mac
    if not exact:  # V2
        negotiating = state["phy"][PHY_CTRL] & AN_ENABLED and not state["phy"][PHY_STATUS] & AN_DONE
        state["link_down"] = not mac[STATUS] & LINK_UP and not negotiating
        state["an_left"] = AN_NS if negotiating else -1
    return state, config


def _read_ours(r: _Reader, state: dict[str, Any], body: bytes) -> None:
    io_addr, size, descs, flags, tag, mit_left, an_left, rx_left, phy_status = r.read(OURS)
    if size > 69632 or flags >> len(FLAGS):
        raise Error("e1000 state holds a packet or flags that no e1000 has")
    if min(mit_left, an_left, rx_left) < -1 or max(mit_left, an_left, rx_left) > 60_000_000_000:
        raise Error("e1000 state holds a timer that no e1000 sets")
    state.update(
        io_addr=io_addr, packet=body[:size] + r.take(max(0, size - 65536)), descs=descs, vlan_tci=tag, mit_left=mit_left,
        an_left=an_left, rx_left=rx_left, **{name: bool(flags >> i & 1) for i, name in enumerate(FLAGS)},
    )  # fmt: skip
    state["phy"] = [*state["phy"]]
    state["phy"][PHY_STATUS] = phy_status
