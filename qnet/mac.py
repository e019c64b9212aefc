"""Ethernet addresses: their text, and the ones a network hands out (facts M1 to M4)."""

import re

from qnet.errors import OptionError

__all__ = ["BASE", "MacPool", "format_mac", "parse_mac"]

BASE = bytes.fromhex("5254001234")      # what automatic addresses begin with (M1)
FIRST, LAST = 0x56, 0xFE
UNSET = bytes(6)


def format_mac(mac: bytes) -> str:
    """52:54:00:12:34:56"""
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """The address of -nic mac= and -net nic,macaddr= (M3): six groups of one or two hex digits joined by ':' or '-', or one number
    up to 0xffffff for the last three bytes; "" is the unset address, all zero.

    OptionError otherwise. QEMU cuts a group such as 256 to its last two digits; here it is an error.
    """
    if re.fullmatch(r"(?:[0-9a-fA-F]{1,2}[:-]){5}[0-9a-fA-F]{1,2}", text):
        return bytes(int(group, 16) for group in re.split("[:-]", text))
    m = re.fullmatch(r"(?:0[xX]([0-9a-fA-F]{1,8})|(0[0-7]{0,10})|([1-9][0-9]{0,9}))?", text, re.ASCII)
    number = -1 if m is None else int(m[1], 16) if m[1] else int(m[2], 8) if m[2] else int(m[3] or "0")
    if 0 <= number <= 0xFFFFFF:
        return number.to_bytes(6, "big")
    raise OptionError("invalid syntax for ethernet address", "six pairs of hex digits: 52:54:00:12:34:56")


class MacPool:
    """The last bytes that are in use behind BASE, counted (M1, M2). One for each network."""

    def __init__(self) -> None:
        self._used: dict[int, int] = {}

    def take(self, mac: bytes | None) -> bytes:
        """Mark `mac` as used and return it; None or all zero: the first free automatic address, or BASE:ff when there is none."""
        if mac is None or mac == UNSET:
            mac = BASE + bytes([next((i for i in range(FIRST, LAST + 1) if i not in self._used), 0xFF)])
        if mac[:5] == BASE and FIRST <= mac[5] <= LAST:
            self._used[mac[5]] = self._used.get(mac[5], 0) + 1
        return mac

    def release(self, mac: bytes) -> None:
        """Undo one take. An address that is not marked is left alone."""
        if mac[:5] == BASE and mac[5] in self._used:
            self._used[mac[5]] -= 1
            if not self._used[mac[5]]:
                del self._used[mac[5]]
