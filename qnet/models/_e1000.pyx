"""The e1000: registers, EEPROM, PHY, link and reset of the 82540EM, 82544GC and 82545EM, and the object that holds them.

Written from the Intel 8254x software developer's manual (sections in brackets) and from what QEMU's model answers (facts E, R, P,
Y, L of the project's notes). Interrupts and rings are in _e1000_rings.pyx; models/e1000.py is the PCI function around it all.
"""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from qnet._context cimport context_enter, context_leave
from qnet._eth cimport ETH_ZLEN
from qnet._client cimport Context, NetClient
from qnet._fastpath cimport NetClientOps, NetClientState, net_flush
from qnet._host cimport GuestMemory, IrqLine
from qnet._loop cimport Loop, Timer, loop_now, timer_cancel, timer_init, timer_set
from qnet.models._e1000_regs cimport *
from qnet.models._e1000_rings cimport *

cdef enum:
    AN_NS = 500000000               # auto-negotiation takes this long (Y4)
    RX_STALL_NS = 1000000000        # QEMU's pause after an RCTL write (RX2)


# -------------------------------------------------------------------------------------------------------- register table
# One row per register: name, offset, dwords, which HAS_ group it belongs to (0: always), write mask (0: read-only), QEMU's write mask,
# reset value, read, write. A row whose QEMU mask is EXTRA is not decoded at all in QEMU's way.

ctypedef uint32_t (*read_reg)(E1000State *s, uint32_t i) noexcept nogil
ctypedef void (*write_reg)(E1000State *s, uint32_t i, uint32_t value) noexcept nogil

cdef struct Reg:
    const char *name
    uint32_t offset
    uint32_t count
    uint32_t group
    uint32_t mask
    uint32_t qemu_mask
    uint32_t reset
    read_reg read
    write_reg write

cdef enum:
    ALL = 0xFFFFFFFF
    EXTRA = 0xFFFFFFFE              # in the QEMU column: not decoded there


cdef uint32_t rd(E1000State *s, uint32_t i) noexcept nogil:
    return s.mac[i]


cdef uint32_t rd_zero(E1000State *s, uint32_t i) noexcept nogil:
    return 0


cdef uint32_t rd_clear(E1000State *s, uint32_t i) noexcept nogil:
    """Statistics clear when read (13.7)."""
    cdef uint32_t v = s.mac[i]
    s.mac[i] = 0
    return v


cdef uint32_t rd_clear_high(E1000State *s, uint32_t i) noexcept nogil:
    """The high half of a 64-bit counter: reading it clears both."""
    cdef uint32_t v = s.mac[i]
    s.mac[i] = 0
    s.mac[i - 1] = 0
    return v


cdef uint32_t rd_icr(E1000State *s, uint32_t i) noexcept nogil:
    """Read clears all causes (13.4.17)."""
    cdef uint32_t v = s.mac[i]
    set_icr(s, 0)
    return v


cdef uint32_t rd_ics(E1000State *s, uint32_t i) noexcept nogil:
    return s.mac[ICR >> 2]


cdef uint32_t rd_eecd(E1000State *s, uint32_t i) noexcept nogil:
    cdef uint32_t v = EECD_PRES | EECD_GNT | (s.ee_last & EECD_WRITABLE)
    if not s.ee_reading or (s.eeprom[(s.ee_bits_out >> 4) & 0x3f] >> (15 - (s.ee_bits_out & 15))) & 1:
        v |= EECD_DO
    return v


cdef uint32_t rd_eerd(E1000State *s, uint32_t i) noexcept nogil:
    cdef uint32_t v = s.mac[i] & ~<uint32_t>EERD_START
    cdef uint32_t word = v >> 8
    if not s.mac[i] & EERD_START:
        return s.mac[i]
    if word > 0x3f:
        return v | EERD_DONE
    return (<uint32_t>s.eeprom[word] << 16) | EERD_DONE | v


cdef uint32_t wmask(E1000State *s, uint32_t i) noexcept nogil:
    cdef Reg *r = &REGS[INDEX[i]]
    return r.mask if s.ways & WAY_DECODE else r.qemu_mask


cdef void wr(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    s.mac[i] = value & wmask(s, i)


cdef void wr_none(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    return


cdef void wr_ctrl(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    s.mac[CTRL >> 2] = value & ~<uint32_t>CTRL_RST
    if value & CTRL_RST and s.ways & WAY_CTRL_RESET:
        chip_reset(s)


cdef void wr_eecd(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    """Microwire, bit by bit (5.3): CS frames a command, DI shifts in on SK rising, DO moves on SK falling (P4)."""
    cdef uint32_t old = s.ee_last
    s.ee_last = value & EECD_WRITABLE
    if not value & EECD_CS:
        return
    if not old & EECD_CS:
        s.ee_in = 0
        s.ee_bits_in = 0
        s.ee_bits_out = 0
        s.ee_reading = False
    if not (old ^ value) & EECD_SK:
        return
    if not value & EECD_SK:
        s.ee_bits_out += 1
        return
    s.ee_in = (s.ee_in << 1) | (1 if value & EECD_DI else 0)
    s.ee_bits_in += 1
    if s.ee_bits_in == 9 and not s.ee_reading:
        # the falling edge that follows makes this the first bit of the word
        s.ee_bits_out = <uint16_t>(((s.ee_in & 0x3f) << 4) - 1)
        s.ee_reading = (s.ee_in >> 6) & 7 == 6


cdef void wr_mdic(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    """One access to the PHY at address 1; it is over at once (13.4.11, Y1, Y2)."""
    cdef uint32_t reg = (value >> MDIC_REG_SHIFT) & 0x1f
    if (value >> MDIC_PHY_SHIFT) & 0x1f != 1:
        value = s.mac[MDIC >> 2] | MDIC_ERROR
    elif value & MDIC_READ:
        if not PHY_ACCESS[reg] & PHY_R:
            value |= MDIC_ERROR
        else:
            value = (value ^ (value & MDIC_DATA)) | s.phy[reg]
    elif value & MDIC_WRITE:
        if not PHY_ACCESS[reg] & PHY_W:
            value |= MDIC_ERROR
        elif reg == PHY_CTRL:
            # bits 0-5 are reserved; RESET and RESTART clear themselves (13.5, Y4)
            s.phy[PHY_CTRL] = <uint16_t>(value & ~<uint32_t>(0x3f | PHY_CTRL_RESET | PHY_CTRL_RESTART))
            if value & PHY_CTRL_RESTART and s.phy[PHY_CTRL] & PHY_CTRL_AN_EN and s.has & HAS_AN:
                restart_autoneg(s)
        else:
            s.phy[reg] = <uint16_t>value
    s.mac[MDIC >> 2] = value | MDIC_READY
    if value & MDIC_INT_EN:
        set_cause(s, ICR_MDAC)


cdef void wr_icr(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    set_icr(s, s.mac[ICR >> 2] & ~value)


cdef void wr_ics(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    set_icr(s, s.mac[ICR >> 2] | value)


cdef void wr_ims(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    s.mac[IMS >> 2] |= value
    update_irq(s)


cdef void wr_imc(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    s.mac[IMS >> 2] &= ~value
    update_irq(s)


cdef void wr_rctl(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    """Receive control: buffer size and threshold change with it; waiting packets may go on (13.4.22, RX8)."""
    cdef uint32_t size = (value >> 16) & 3
    s.mac[i] = value
    if value & RCTL_BSEX and size:
        s.rx_bufsize = 32768 >> size
    else:
        s.rx_bufsize = 2048 >> (size if not value & RCTL_BSEX else 0)
    s.rx_min_shift = ((value >> 8) & 3) + 1
    if not s.ways & WAY_RX_AT_ONCE:
        timer_set(&s.rx_timer, loop_now(s.loop) + RX_STALL_NS)
    net_flush(s.nc)


cdef void wr_rdt(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    s.mac[RDT >> 2] = value & 0xffff
    if s.mac[RDH >> 2] != s.mac[RDT >> 2]:
        net_flush(s.nc)


cdef void wr_tctl(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    s.mac[TCTL >> 2] = value
    transmit(s)


cdef void wr_tdt(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    s.mac[TDT >> 2] = value & 0xffff
    transmit(s)


cdef enum:
    REG_ROWS = 98

cdef Reg[REG_ROWS] REGS = [
    # never matched: what is not in the table reads 0 and ignores writes (E8)
    Reg(b"", ALL, 0, 0, 0, 0, 0, rd_zero, wr_none),
    # general (13.4)
    Reg(b"CTRL", CTRL, 1, 0, ALL, ALL, 0x00140240, rd, wr_ctrl),
    Reg(b"STATUS", STATUS, 1, 0, 0, 0, 0x80080783, rd, wr_none),
    Reg(b"EECD", EECD, 1, 0, EECD_WRITABLE, EECD_WRITABLE, 0, rd_eecd, wr_eecd),
    Reg(b"EERD", EERD, 1, 0, ALL, ALL, 0, rd_eerd, wr),
    Reg(b"CTRL_EXT", CTRL_EXT, 1, 0, ALL, EXTRA, 0, rd, wr),
    Reg(b"MDIC", MDIC, 1, 0, ALL, ALL, 0, rd, wr_mdic),
    Reg(b"FCAL", FCAL, 1, 0, ALL, EXTRA, 0x00C28001, rd, wr),
    Reg(b"FCAH", FCAH, 1, 0, 0xFFFF, EXTRA, 0x0100, rd, wr),
    Reg(b"FCT", FCT, 1, 0, 0xFFFF, EXTRA, 0x8808, rd, wr),
    Reg(b"VET", VET, 1, 0, 0xFFFF, ALL, 0x8100, rd, wr),
    Reg(b"FCTTV", FCTTV, 1, 0, 0xFFFF, EXTRA, 0, rd, wr),
    Reg(b"TXCW", TXCW, 1, 0, 0xC000FFFF, EXTRA, 0, rd, wr),
    Reg(b"RXCW", RXCW, 1, 0, 0, EXTRA, 0, rd, wr_none),
    Reg(b"LEDCTL", LEDCTL, 1, 0, ALL, ALL, 0x0602, rd, wr),
    Reg(b"PBA", PBA, 1, 0, ALL, ALL, 0x00100030, rd, wr),
    # interrupts (13.4.17 to 13.4.21)
    Reg(b"ICR", ICR, 1, 0, ALL, ALL, 0, rd_icr, wr_icr),
    Reg(b"ITR", ITR, 1, HAS_MIT, 0xFFFF, 0xFFFF, 0, rd, wr),
    Reg(b"ICS", ICS, 1, 0, ALL, ALL, 0, rd_ics, wr_ics),
    Reg(b"IMS", IMS, 1, 0, ALL, ALL, 0, rd, wr_ims),
    Reg(b"IMC", IMC, 1, 0, ALL, ALL, 0, rd_zero, wr_imc),
    # receive (13.4.22 on)
    Reg(b"RCTL", RCTL, 1, 0, ALL, ALL, 0, rd, wr_rctl),
    Reg(b"FCRTL", FCRTL, 1, 0, 0x8000FFF8, EXTRA, 0, rd, wr),
    Reg(b"FCRTH", FCRTH, 1, 0, 0x0000FFF8, EXTRA, 0, rd, wr),
    Reg(b"RDFH", RDFH, 1, HAS_MAC, 0x1FFF, 0x1FFF, 0, rd, wr),
    Reg(b"RDFT", RDFT, 1, HAS_MAC, 0x1FFF, 0x1FFF, 0, rd, wr),
    Reg(b"RDFHS", RDFHS, 1, HAS_MAC, 0x1FFF, 0x1FFF, 0, rd, wr),
    Reg(b"RDFTS", RDFTS, 1, HAS_MAC, 0x1FFF, 0x1FFF, 0, rd, wr),
    Reg(b"RDFPC", RDFPC, 1, HAS_MAC, 0x1FFF, 0x1FFF, 0, rd, wr),
    Reg(b"RDBAL", RDBAL, 1, 0, 0xFFFFFFF0, ALL, 0, rd, wr),
    Reg(b"RDBAH", RDBAH, 1, 0, ALL, ALL, 0, rd, wr),
    Reg(b"RDLEN", RDLEN, 1, 0, 0xFFF80, 0xFFF80, 0, rd, wr),
    Reg(b"RDH", RDH, 1, 0, 0xFFFF, 0xFFFF, 0, rd, wr),
    Reg(b"RDT", RDT, 1, 0, 0xFFFF, 0xFFFF, 0, rd, wr_rdt),
    Reg(b"RDTR", RDTR, 1, HAS_MIT, 0xFFFF, 0xFFFF, 0, rd, wr),
    Reg(b"RXDCTL", RXDCTL, 1, 0, 0x013F3F3F, EXTRA, 0, rd, wr),
    Reg(b"RADV", RADV, 1, HAS_MIT, 0xFFFF, 0xFFFF, 0, rd, wr),
    Reg(b"RSRPD", RSRPD, 1, 0, 0x0FFF, EXTRA, 0, rd, wr),
    Reg(b"RXCSUM", RXCSUM, 1, 0, 0x7FF, EXTRA, 0, rd, wr),
    Reg(b"MTA", MTA, 128, 0, ALL, ALL, 0, rd, wr),
    Reg(b"RA", RA, 32, 0, ALL, ALL, 0, rd, wr_ra),
    Reg(b"VFTA", VFTA, 128, 0, ALL, ALL, 0, rd, wr),
    # transmit (13.4.32 on)
    Reg(b"TCTL", TCTL, 1, 0, ALL, ALL, 0, rd, wr_tctl),
    Reg(b"TIPG", TIPG, 1, 0, 0x3FFFFFFF, EXTRA, 0, rd, wr),
    Reg(b"AIT", AIT, 1, HAS_MAC, 0xFFFF, 0xFFFF, 0, rd, wr),
    Reg(b"TDFH", TDFH, 1, HAS_MAC, 0x7FF, 0x7FF, 0, rd, wr),
    Reg(b"TDFT", TDFT, 1, HAS_MAC, 0x7FF, 0x7FF, 0, rd, wr),
    Reg(b"TDFHS", TDFHS, 1, HAS_MAC, 0x1FFF, 0x1FFF, 0, rd, wr),
    Reg(b"TDFTS", TDFTS, 1, HAS_MAC, 0x1FFF, 0x1FFF, 0, rd, wr),
    Reg(b"TDFPC", TDFPC, 1, HAS_MAC, 0x1FFF, 0x1FFF, 0, rd, wr),
    Reg(b"TDBAL", TDBAL, 1, 0, 0xFFFFFFF0, ALL, 0, rd, wr),
    Reg(b"TDBAH", TDBAH, 1, 0, ALL, ALL, 0, rd, wr),
    Reg(b"TDLEN", TDLEN, 1, 0, 0xFFF80, 0xFFF80, 0, rd, wr),
    Reg(b"TDH", TDH, 1, 0, 0xFFFF, 0xFFFF, 0, rd, wr),
    Reg(b"TDT", TDT, 1, 0, 0xFFFF, 0xFFFF, 0, rd, wr_tdt),
    Reg(b"TIDV", TIDV, 1, 0, 0xFFFF, EXTRA, 0, rd, wr),
    Reg(b"TXDCTL", TXDCTL, 1, 0, ALL, ALL, 0, rd, wr),
    Reg(b"TADV", TADV, 1, HAS_MIT, 0xFFFF, 0xFFFF, 0, rd, wr),
    Reg(b"TSPMT", TSPMT, 1, 0, ALL, EXTRA, 0x01000400, rd, wr),
    # statistics (13.7); those from SCC on came later (extra_mac_registers)
    Reg(b"CRCERRS", CRCERRS, 4, 0, 0, 0, 0, rd, wr_none),
    Reg(b"MPC", MPC, 1, 0, 0, 0, 0, rd, wr_none),
    Reg(b"SCC", SCC, 17, HAS_MAC, 0, 0, 0, rd, wr_none),
    Reg(b"FCRUC", FCRUC, 1, HAS_MAC, ALL, ALL, 0, rd, wr),
    Reg(b"PRC64", PRC64, 6, HAS_MAC, 0, 0, 0, rd_clear, wr_none),
    Reg(b"GPRC", GPRC, 1, 0, 0, 0, 0, rd_clear, wr_none),
    Reg(b"BPRC", BPRC, 2, HAS_MAC, 0, 0, 0, rd_clear, wr_none),
    Reg(b"GPTC", GPTC, 1, 0, 0, 0, 0, rd_clear, wr_none),
    Reg(b"GORCL", GORCL, 1, HAS_MAC, 0, 0, 0, rd, wr_none),
    Reg(b"GORCH", GORCH, 1, HAS_MAC, 0, 0, 0, rd_clear_high, wr_none),
    Reg(b"GOTCL", GOTCL, 1, HAS_MAC, 0, 0, 0, rd, wr_none),
    Reg(b"GOTCH", GOTCH, 1, HAS_MAC, 0, 0, 0, rd_clear_high, wr_none),
    Reg(b"RNBC", RNBC, 1, HAS_MAC, 0, 0, 0, rd, wr_none),
    Reg(b"RUC", RUC, 1, HAS_MAC, 0, 0, 0, rd_clear, wr_none),
    Reg(b"RFC", RFC, 1, HAS_MAC, 0, 0, 0, rd, wr_none),
    Reg(b"ROC", ROC, 1, HAS_MAC, 0, 0, 0, rd_clear, wr_none),
    Reg(b"RJC", RJC, 1, HAS_MAC, 0, 0, 0, rd, wr_none),
    Reg(b"MGTPRC", MGTPRC, 3, HAS_MAC, 0, 0, 0, rd, wr_none),
    Reg(b"TORL", TORL, 1, 0, 0, 0, 0, rd, wr_none),
    Reg(b"TORH", TORH, 1, 0, 0, 0, 0, rd_clear_high, wr_none),
    Reg(b"TOTL", TOTL, 1, 0, 0, 0, 0, rd, wr_none),
    Reg(b"TOTH", TOTH, 1, 0, 0, 0, 0, rd_clear_high, wr_none),
    Reg(b"TPR", TPR, 2, 0, 0, 0, 0, rd_clear, wr_none),
    Reg(b"PTC64", PTC64, 6, HAS_MAC, 0, 0, 0, rd_clear, wr_none),
    Reg(b"MPTC", MPTC, 3, HAS_MAC, 0, 0, 0, rd_clear, wr_none),
    Reg(b"TSCTFC", TSCTFC, 1, HAS_MAC, 0, 0, 0, rd, wr_none),
    # wake-up, management, diagnostics: storage that drivers read back
    Reg(b"WUC", WUC, 1, HAS_MAC, ALL, ALL, 0, rd, wr),
    Reg(b"WUFC", WUFC, 1, 0, ALL, ALL, 0, rd, wr),
    Reg(b"WUS", WUS, 1, HAS_MAC, ALL, ALL, 0, rd, wr),
    Reg(b"MANC", MANC, 1, 0, 0, 0, 0x00222300, rd, wr_none),
    Reg(b"IPAV", IPAV, 1, HAS_MAC, ALL, ALL, 0, rd, wr),
    Reg(b"IP4AT", IP4AT, 7, HAS_MAC, ALL, ALL, 0, rd, wr),
    Reg(b"IP6AT", IP6AT, 4, HAS_MAC, ALL, ALL, 0, rd, wr),
    Reg(b"WUPM", WUPM, 32, HAS_MAC, ALL, ALL, 0, rd, wr),
    Reg(b"SWSM", SWSM, 1, 0, ALL, ALL, 0, rd, wr),
    Reg(b"FFLT", FFLT, 7, HAS_MAC, 0x7FF, 0x7FF, 0, rd, wr),
    Reg(b"FFMT", FFMT, 255, HAS_MAC, 0xF, 0xF, 0, rd, wr),
    Reg(b"FFVT", FFVT, 255, HAS_MAC, ALL, ALL, 0, rd, wr),
    Reg(b"PBM", PBM, 16384, HAS_MAC, ALL, ALL, 0, rd, wr),
]

cdef uint8_t[MAC_REGS] INDEX        # dword -> row

cdef enum:
    PHY_R = 1
    PHY_W = 2

cdef uint8_t[32] PHY_ACCESS
cdef uint16_t[32] PHY_RESET


def _build_tables():
    cdef uint32_t row
    cdef uint32_t i
    cdef uint32_t at
    memset(INDEX, 0, sizeof(INDEX))
    for row in range(1, <uint32_t>REG_ROWS):
        for i in range(REGS[row].count):
            at = (REGS[row].offset >> 2) + i
            assert at < MAC_REGS and INDEX[at] == 0, f"register {REGS[row].name} overlaps another"
            INDEX[at] = row
    memset(PHY_ACCESS, 0, sizeof(PHY_ACCESS))
    memset(PHY_RESET, 0, sizeof(PHY_RESET))
    # register, reset value, access (13.5, Y3); ID2 depends on the device
    for reg, reset, access in ((0, 0x1140, PHY_R | PHY_W), (1, 0x794D, PHY_R), (2, 0x0141, PHY_R), (3, 0, PHY_R),
                               (4, 0x0DE1, PHY_R | PHY_W), (5, 0x01E0, PHY_R), (6, 0, PHY_R), (9, 0x0E00, PHY_R | PHY_W),
                               (10, 0x3C00, PHY_R), (16, 0x0360, PHY_R | PHY_W), (17, 0xAC00, PHY_R),
                               (20, 0x0D60, PHY_R | PHY_W), (21, 0, PHY_R)):
        PHY_RESET[reg] = reset
        PHY_ACCESS[reg] = access


_build_tables()


def registers() -> list:
    """The register table: one dict a row (name, offset, count, mask, qemu_mask or None where QEMU does not decode it, reset, group)."""
    groups = {0: None, HAS_MIT: "mitigation", HAS_MAC: "extra_mac_registers"}
    return [{"name": REGS[i].name.decode(), "offset": REGS[i].offset, "count": REGS[i].count, "mask": REGS[i].mask,
             "qemu_mask": None if REGS[i].qemu_mask == EXTRA else REGS[i].qemu_mask, "reset": REGS[i].reset,
             "group": groups[REGS[i].group]} for i in range(1, REG_ROWS)]


cdef void wr_ra(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    """Receive address; in the high half only AV, AS and 16 address bits exist (13.5.3)."""
    if i & 1 and s.ways & WAY_DECODE:
        value &= <uint32_t>0x8003FFFF
    s.mac[i] = value


cdef inline bint decoded(E1000State *s, Reg *r) noexcept nogil:
    return not r.group & ~s.has and (r.qemu_mask != EXTRA or s.ways & WAY_DECODE != 0)


cdef inline uint32_t reg_read(E1000State *s, uint32_t i) noexcept nogil:
    cdef Reg *r = &REGS[INDEX[i]]
    return r.read(s, i) if decoded(s, r) else 0


cdef inline void reg_write(E1000State *s, uint32_t i, uint32_t value) noexcept nogil:
    cdef Reg *r = &REGS[INDEX[i]]
    if decoded(s, r):
        r.write(s, i, value)


cdef uint64_t mmio_read(E1000State *s, uint64_t off, uint32_t size) noexcept nogil:
    """1, 2, 4 or 8 bytes at any offset: every dword touched is read once, low one first (E6)."""
    cdef uint64_t value = 0
    cdef uint32_t done = 0
    cdef uint32_t at
    cdef uint32_t k
    s.mmio_reads += 1
    if size == 4 and not off & 3:
        return reg_read(s, (off & 0x1ffff) >> 2)
    while done < size:
        at = <uint32_t>((off + done) & 0x1ffff)
        k = 4 - (at & 3)
        if k > size - done:
            k = size - done
        value |= ((<uint64_t>reg_read(s, at >> 2) >> (8 * (at & 3))) & ((<uint64_t>1 << (8 * k)) - 1)) << (8 * done)
        done += k
    return value


cdef void mmio_write(E1000State *s, uint64_t off, uint32_t size, uint64_t value) noexcept nogil:
    """A part of a register is merged into what it holds; into 0 where writing a 1 is an order (interrupt registers)."""
    cdef uint32_t done = 0
    cdef uint32_t at
    cdef uint32_t k
    cdef uint32_t i
    cdef uint32_t mask
    cdef uint32_t old
    s.mmio_writes += 1
    if size == 4 and not off & 3:
        reg_write(s, (off & 0x1ffff) >> 2, <uint32_t>value)
        return
    while done < size:
        at = <uint32_t>((off + done) & 0x1ffff)
        k = 4 - (at & 3)
        if k > size - done:
            k = size - done
        i = at >> 2
        mask = <uint32_t>(((<uint64_t>1 << (8 * k)) - 1) << (8 * (at & 3)))
        old = 0
        if i == EECD >> 2:
            old = s.ee_last
        elif i != ICR >> 2 and i != ICS >> 2 and i != IMS >> 2 and i != IMC >> 2:
            old = s.mac[i]
        reg_write(s, i, (old & ~mask) | (<uint32_t>((value >> (8 * done)) << (8 * (at & 3))) & mask))
        done += k


cdef uint64_t io_read(E1000State *s, uint64_t off, uint32_t size) noexcept nogil:
    """The I/O BAR: IOADDR at 0, IODATA at 4 (13.2.2). Only registers are behind it. Reads of any size are reads of the dword."""
    cdef uint32_t value = s.io_addr
    cdef uint32_t shift = 8 * (<uint32_t>off & 3)
    if not s.ways & WAY_IO_WINDOW or off >= 8 or shift + 8 * size > 32:
        return 0
    if off >= 4:
        value = <uint32_t>mmio_read(s, s.io_addr, 4) if s.io_addr < MAC_REGS * 4 and not s.io_addr & 3 else 0
    return (value >> shift) & ((<uint64_t>1 << (8 * size)) - 1)


cdef void io_write(E1000State *s, uint64_t off, uint32_t size, uint64_t value) noexcept nogil:
    if not s.ways & WAY_IO_WINDOW or size != 4:
        return
    if off == 0:
        s.io_addr = <uint32_t>value & 0xfffff
    elif off == 4 and s.io_addr < MAC_REGS * 4 and not s.io_addr & 3:
        mmio_write(s, s.io_addr, 4, value)


# --------------------------------------------------------------------------------------------------------- link and reset

cdef void link_lost(E1000State *s) noexcept nogil:
    s.mac[STATUS >> 2] &= ~<uint32_t>STATUS_LU
    s.phy[PHY_STATUS] &= <uint16_t>~(PHY_STATUS_LINK | PHY_STATUS_AN_DONE)
    s.phy[PHY_LPA] &= <uint16_t>~PHY_LPA_ACK


cdef void link_gained(E1000State *s) noexcept nogil:
    s.mac[STATUS >> 2] |= STATUS_LU
    s.phy[PHY_STATUS] |= PHY_STATUS_LINK


cdef void restart_autoneg(E1000State *s) noexcept nogil:
    link_lost(s)
    timer_set(&s.an_timer, loop_now(s.loop) + AN_NS)


cdef void an_expired(void *opaque) noexcept nogil:
    """Auto-negotiation ends (Y4): with the backend's link up, the link comes up."""
    cdef E1000State *s = <E1000State *>opaque
    if s.nc.link_down:
        return
    link_gained(s)
    s.phy[PHY_STATUS] |= PHY_STATUS_AN_DONE
    s.phy[PHY_LPA] |= PHY_LPA_ACK
    set_cause(s, ICR_LSC)
    net_flush(s.nc)


cdef void rx_stall_over(void *opaque) noexcept nogil:
    net_flush((<E1000State *>opaque).nc)


cdef void chip_link_status_changed(NetClientState *nc) noexcept nogil:
    """The backend's link went up or down (L1, L2)."""
    cdef E1000State *s = <E1000State *>nc.opaque
    cdef uint32_t old = s.mac[STATUS >> 2]
    if nc.link_down:
        link_lost(s)
    elif s.has & HAS_AN and s.phy[PHY_CTRL] & PHY_CTRL_AN_EN and not s.phy[PHY_STATUS] & PHY_STATUS_AN_DONE:
        restart_autoneg(s)
    else:
        link_gained(s)
        net_flush(nc)
    if s.mac[STATUS >> 2] != old:
        set_cause(s, ICR_LSC)


cdef void chip_reset(E1000State *s) noexcept nogil:
    """All MAC registers and transmit state as after power-on (13.4.1, CTRL.RST; 4.6); PHY, EEPROM and Microwire state stay (P5)."""
    cdef uint32_t row
    cdef uint32_t i
    cdef Reg *r
    timer_cancel(&s.mit_timer)
    timer_cancel(&s.rx_timer)
    s.window = False
    s.ide = False
    memset(s.mac, 0, sizeof(s.mac))
    for row in range(1, <uint32_t>REG_ROWS):
        r = &REGS[row]
        if r.reset and decoded(s, r):
            for i in range(r.count):
                s.mac[(r.offset >> 2) + i] = r.reset
    if not s.has & HAS_VET:
        s.mac[VET >> 2] = 0
    s.mac[RA >> 2] = s.eeprom[0] | <uint32_t>s.eeprom[1] << 16
    s.mac[(RA >> 2) + 1] = s.eeprom[2] | RAH_AV
    if not s.phy[PHY_STATUS] & PHY_STATUS_LINK:
        s.mac[STATUS >> 2] &= ~<uint32_t>STATUS_LU
    s.rx_bufsize = 2048
    s.rx_min_shift = 1
    s.io_addr = 0
    memset(&s.sum_ctx, 0, sizeof(s.sum_ctx))
    memset(&s.tso_ctx, 0, sizeof(s.tso_ctx))
    memset(&s.pkt, 0, sizeof(s.pkt))
    update_irq(s)
    net_flush(s.nc)                     # what waited was for the driver that is gone


cdef void bus_reset(E1000State *s) noexcept nogil:
    """PCI reset (4.9): the PHY too; the link follows the backend."""
    timer_cancel(&s.an_timer)
    memcpy(s.phy, PHY_RESET, sizeof(s.phy))
    s.phy[PHY_ID2] = s.phy_id2
    if s.nc.link_down:
        link_lost(s)
    chip_reset(s)


cdef NetClientOps chip_ops = NetClientOps(
    receive=chip_receive,
    can_receive=chip_can_receive,
    resume=NULL,                        # transmit does not wait: what finds no room is queued by the core (T11)
    link_status_changed=chip_link_status_changed,
    cleanup=NULL,
)


# ------------------------------------------------------------------------------------------------------------- the object

@cython.no_gc_clear
cdef class E1000Chip(NetClient):
    """The chip as an object: register access, reset, state. models/e1000.py adds the PCI function.

    eeprom: 64 words; ways, has: bit sets of departures and features (WAYS, FEATURES). Register accesses run on the caller's
    thread; a write to TDT sends the whole ring before it returns.
    """

    def __cinit__(self, Context context not None, *args, **kwargs):
        self.s.nc = &self.nc
        self.s.tx_buf = <uint8_t *>malloc(NET_MAX_TSO)
        self.s.burst = <TxBurst *>calloc(1, sizeof(TxBurst))
        if self.s.tx_buf == NULL or self.s.burst == NULL:
            raise MemoryError

    def __init__(self, Loop loop not None, str name, str model, GuestMemory memory not None, IrqLine irq not None, *,
                 list eeprom, int phy_id2, uint32_t ways, uint32_t has):
        cdef int i
        super().__init__(loop, name, model)
        if len(eeprom) != 64:
            raise ValueError("the EEPROM has 64 words")
        self.memory = memory
        self.irq = irq
        irq.attach(&loop.ctx, loop)
        memory.attach(&loop.ctx, loop)
        self.s.loop = &loop.loop
        self.s.mem = &memory.mem
        self.s.irq = &irq.irq
        self.s.ways = ways
        self.s.has = has
        self.s.phy_id2 = phy_id2
        for i in range(64):
            self.s.eeprom[i] = eeprom[i]
        timer_init(&self.s.mit_timer, &loop.loop, mit_expired, &self.s)
        timer_init(&self.s.an_timer, &loop.loop, an_expired, &self.s)
        timer_init(&self.s.rx_timer, &loop.loop, rx_stall_over, &self.s)
        self._setup(&chip_ops, &self.s)
        self.nc.is_nic = True
        self.nc.min_frame = ETH_ZLEN
        bus_reset(&self.s)

    def __dealloc__(self):
        self._fini()
        self._stop_timers()
        free(self.s.tx_buf)
        free(self.s.burst)

    cdef void _stop_timers(self) noexcept:
        if self.s.loop == NULL:
            return
        with nogil:
            context_enter(self.nc.ctx)
            timer_cancel(&self.s.mit_timer)
            timer_cancel(&self.s.an_timer)
            timer_cancel(&self.s.rx_timer)
            context_leave(self.nc.ctx)

    def close(self):
        """Take the NIC off the network; its interrupt line goes down."""
        if self.closed:
            return
        NetClient.close(self)
        self._stop_timers()
        self.s.bus_master = False
        self.irq.detach()

    def bar_read(self, int bar, uint64_t offset, uint32_t size) -> int:
        """Read 1, 2, 4 or 8 bytes of BAR 0 (registers) or BAR 1 (I/O window)."""
        cdef uint64_t v
        if size != 4:
            check_size(size)
        with nogil:
            context_enter(self.nc.ctx)
            if bar == 0:
                v = mmio_read(&self.s, offset, size)
            else:
                v = io_read(&self.s, offset, size) if bar == 1 else 0
            context_leave(self.nc.ctx)
        if self.nc.ctx.first != NULL:
            self.context.run_deferred()
        return v

    def bar_write(self, int bar, uint64_t offset, uint32_t size, uint64_t value):
        """Write 1, 2, 4 or 8 bytes of BAR 0 or BAR 1."""
        if size != 4:
            check_size(size)
        with nogil:
            context_enter(self.nc.ctx)
            if bar == 0:
                mmio_write(&self.s, offset, size, value)
            elif bar == 1:
                io_write(&self.s, offset, size, value)
            context_leave(self.nc.ctx)
        if self.nc.ctx.first != NULL:
            self.context.run_deferred()

    def set_command(self, bint bus_master, bint intx_disable):
        """The COMMAND register: without bus master the chip reaches no memory; setting it moves what waited (E4)."""
        with nogil:
            context_enter(self.nc.ctx)
            self.s.bus_master = bus_master
            self.s.intx_off = intx_disable
            sync_irq(&self.s)
            if bus_master:
                if self.s.mac[TDH >> 2] != self.s.mac[TDT >> 2]:
                    transmit(&self.s)
                net_flush(&self.nc)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    def reset_chip(self):
        """PCI reset (4.9)."""
        with nogil:
            context_enter(self.nc.ctx)
            bus_reset(&self.s)
            context_leave(self.nc.ctx)
        self.context.run_deferred()

    def get_state(self) -> dict:
        """Everything the guest could tell apart, as plain values; set_state() takes it back. Deadlines are ns from now, -1: not set."""
        cdef E1000State *c = <E1000State *>malloc(sizeof(E1000State))
        cdef uint8_t *packet = <uint8_t *>malloc(NET_MAX_TSO)
        cdef int64_t now
        cdef bint link_down
        if c == NULL or packet == NULL:
            free(c)
            free(packet)
            raise MemoryError
        with nogil:
            context_enter(self.nc.ctx)
            memcpy(c, &self.s, sizeof(E1000State))
            memcpy(packet, self.s.tx_buf, NET_MAX_TSO)
            now = loop_now(self.s.loop)
            link_down = self.nc.link_down
            context_leave(self.nc.ctx)
        state = {
            "mac": [c.mac[i] for i in range(MAC_REGS)], "phy": list(c.phy), "eeprom": list(c.eeprom), "io_addr": c.io_addr,
            "ee_in": c.ee_in, "ee_bits_in": c.ee_bits_in, "ee_bits_out": c.ee_bits_out, "ee_reading": bool(c.ee_reading),
            "ee_last": c.ee_last, "rx_bufsize": c.rx_bufsize, "rx_min_shift": c.rx_min_shift,
            "sum_ctx": get_context(&c.sum_ctx), "tso_ctx": get_context(&c.tso_ctx),
            "packet": (<char *>packet)[:c.pkt.size if c.pkt.nfrag else 0], "descs": c.pkt.descs, "popts": c.pkt.popts,
            "lost": bool(c.pkt.lost), "tse": bool(c.pkt.tse), "vlan": bool(c.pkt.vlan), "vlan_tci": c.pkt.vlan_tci,
            "line": c.line, "window": bool(c.window), "ide": bool(c.ide), "link_down": bool(link_down),
            "mit_left": left(&c.mit_timer, now), "an_left": left(&c.an_timer, now), "rx_left": left(&c.rx_timer, now),
        }
        free(c)
        free(packet)
        return state

    def set_state(self, dict state):
        """Take a state of get_state(). Every value is checked by its type's range before anything changes; then the link, the line
        and what waits for the chip follow."""
        cdef E1000State *c = <E1000State *>calloc(1, sizeof(E1000State))
        cdef bytes packet = state["packet"]
        cdef const char *body = packet
        cdef int64_t mit_left = state["mit_left"]
        cdef int64_t an_left = state["an_left"]
        cdef int64_t rx_left = state["rx_left"]
        cdef bint link_down = state["link_down"]
        cdef int64_t now
        cdef uint32_t i
        if c == NULL:
            raise MemoryError
        try:
            if len(packet) > NET_MAX_TSO:
                raise ValueError("a packet in flight has at most 69632 bytes")
            for i, value in enumerate(state["mac"]):
                c.mac[i & (MAC_REGS - 1)] = value
            for i in range(32):
                c.phy[i] = state["phy"][i]
            for i in range(64):
                c.eeprom[i] = state["eeprom"][i]
            c.io_addr = state["io_addr"]
            c.ee_in = state["ee_in"]
            c.ee_bits_in = state["ee_bits_in"]
            c.ee_bits_out = state["ee_bits_out"]
            c.ee_reading = state["ee_reading"]
            c.ee_last = state["ee_last"]
            c.rx_bufsize = state["rx_bufsize"]
            c.rx_min_shift = state["rx_min_shift"]
            if c.rx_bufsize not in (256, 512, 1024, 2048, 4096, 8192, 16384) or not 1 <= c.rx_min_shift <= 4:
                raise ValueError("no receive buffer size or threshold that RCTL can give")
            set_context(&c.sum_ctx, state["sum_ctx"])
            set_context(&c.tso_ctx, state["tso_ctx"])
            c.pkt.size = <uint32_t>len(packet)
            c.pkt.nfrag = c.pkt.in_buf = len(packet) > 0
            c.pkt.descs = state["descs"]
            c.pkt.popts = state["popts"]
            c.pkt.lost = state["lost"]
            c.pkt.tse = state["tse"]
            c.pkt.vlan = state["vlan"]
            c.pkt.vlan_tci = state["vlan_tci"]
            c.line = 1 if state["line"] else 0
            c.window = state["window"] and mit_left >= 0
            c.ide = state["ide"]
            with nogil:
                context_enter(self.nc.ctx)
                memcpy(self.s.mac, c.mac, sizeof(c.mac))
                memcpy(self.s.phy, c.phy, sizeof(c.phy))
                memcpy(self.s.eeprom, c.eeprom, sizeof(c.eeprom))
                self.s.io_addr = c.io_addr
                self.s.ee_in = c.ee_in
                self.s.ee_bits_in = c.ee_bits_in
                self.s.ee_bits_out = c.ee_bits_out
                self.s.ee_reading = c.ee_reading
                self.s.ee_last = c.ee_last
                self.s.rx_bufsize = c.rx_bufsize
                self.s.rx_min_shift = c.rx_min_shift
                self.s.sum_ctx = c.sum_ctx
                self.s.tso_ctx = c.tso_ctx
                self.s.pkt = c.pkt
                memcpy(self.s.tx_buf, body, c.pkt.size)
                self.s.line = c.line
                self.s.window = c.window
                self.s.ide = c.ide
                self.nc.link_down = link_down
                now = loop_now(self.s.loop)
                set_left(&self.s.mit_timer, now, mit_left)
                set_left(&self.s.an_timer, now, an_left)
                set_left(&self.s.rx_timer, now, rx_left)
                sync_irq(&self.s)
                net_flush(&self.nc)
                context_leave(self.nc.ctx)
        finally:
            free(c)
        self.context.run_deferred()

    @property
    def irq_level(self) -> int:
        """Level of the interrupt line, for VMMs that poll."""
        return self.s.irq.level

    @property
    def line_level(self) -> int:
        """What the chip asks for, whether or not COMMAND lets it out (PCI STATUS bit 3)."""
        return self.s.line

    @property
    def station_address(self) -> bytes:
        """The address in RAL0/RAH0."""
        return int(self.s.mac[RA >> 2]).to_bytes(4, "little") + int(self.s.mac[(RA >> 2) + 1] & 0xffff).to_bytes(2, "little")

    @property
    def accesses(self) -> tuple:
        """(register reads, register writes) since creation."""
        return self.s.mmio_reads, self.s.mmio_writes

    @property
    def receive_addresses(self) -> list:
        """Addresses in RA whose AV bit is set."""
        out = []
        for i in range(0, 32, 2):
            if self.s.mac[(RA >> 2) + i + 1] & RAH_AV:
                out.append(int(self.s.mac[(RA >> 2) + i]).to_bytes(4, "little") +
                           int(self.s.mac[(RA >> 2) + i + 1] & 0xffff).to_bytes(2, "little"))
        return out


cdef tuple get_context(const TxContext *c):
    return (c.ipcss, c.ipcso, c.ipcse, c.tucss, c.tucso, c.tucse, c.paylen, c.hdr_len, c.mss, c.ip, c.tcp)


cdef int set_context(TxContext *c, tuple v) except -1:
    c.ipcss, c.ipcso, c.ipcse, c.tucss, c.tucso, c.tucse, c.paylen, c.hdr_len, c.mss, c.ip, c.tcp = v
    return 0


cdef int64_t left(const Timer *t, int64_t now) noexcept:
    if t.slot < 0:
        return -1
    return t.deadline - now if t.deadline > now else 0


cdef void set_left(Timer *t, int64_t now, int64_t ns) noexcept nogil:
    timer_cancel(t)
    if ns >= 0:
        timer_set(t, now + ns)


cdef int check_size(uint32_t size) except -1:
    if size != 1 and size != 2 and size != 4 and size != 8:
        raise ValueError(f"an access has 1, 2, 4 or 8 bytes, not {size}")
    return 0


WAYS = {
    "ctrl-reset": WAY_CTRL_RESET, "mac-loopback": WAY_MAC_LOOPBACK, "legacy-checksum": WAY_LEGACY_CSUM,
    "rx-checksum": WAY_RX_CSUM, "io-window": WAY_IO_WINDOW, "full-decode": WAY_DECODE, "rx-at-once": WAY_RX_AT_ONCE,
    "rx-disabled-drops": WAY_RX_DISABLED,
}
FEATURES = {
    "mitigation": HAS_MIT, "extra_mac_registers": HAS_MAC, "autonegotiation": HAS_AN, "migrate_tso_props": HAS_TSO_PROPS,
    "init-vet": HAS_VET,
}
