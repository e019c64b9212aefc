# State of the e1000 chip (82540EM, 82544GC, 82545EM). Chapter and section numbers: Intel 8254x software developer's manual.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from qnet._fastpath cimport NET_BURST, NET_MAX_HDR, NetClientState, Packet
from qnet._host cimport GuestMem, IrqState
from qnet._iov cimport iovec
from qnet._loop cimport LoopState, Timer

# Named departures from QEMU's model (docs/e1000.md). A set bit is the manual's way, a clear one QEMU's.
cdef enum:
    WAY_CTRL_RESET = 0x1            # CTRL.RST resets the chip
    WAY_MAC_LOOPBACK = 0x2          # RCTL.LBM loops back
    WAY_LEGACY_CSUM = 0x4           # legacy descriptors insert checksums
    WAY_RX_CSUM = 0x8               # RXCSUM and the receive checksum bits
    WAY_IO_WINDOW = 0x10            # IOADDR and IODATA behind the I/O BAR
    WAY_DECODE = 0x20               # flow control, TIPG, TIDV, RXDCTL and CTRL_EXT decode, with the manual's masks
    WAY_RX_AT_ONCE = 0x40           # no second of silence after an RCTL write
    WAY_RX_DISABLED = 0x80          # RCTL.EN=0 drops, does not queue

# Which groups of registers and behaviours exist (QEMU's properties of old machine types, E5).
cdef enum:
    HAS_MIT = 0x1                   # mitigation
    HAS_MAC = 0x2                   # extra_mac_registers
    HAS_AN = 0x4                    # autonegotiation
    HAS_TSO_PROPS = 0x8             # migrate_tso_props
    HAS_VET = 0x10                  # init-vet

cdef enum:
    NET_MAX_TSO = 69632             # bytes of one packet that is to be segmented
    MAC_REGS = 0x8000               # 128 KiB of dwords
    TX_BUF_SIZE = 65536             # bytes of one packet; what is over is lost (T7)
    TX_DESCS = 256                  # descriptors between two write-backs
    TX_IOV = 384

cdef struct TxContext:              # a context descriptor, 3.3.6
    uint32_t paylen
    uint16_t ipcse
    uint16_t tucse
    uint16_t mss
    uint8_t ipcss
    uint8_t ipcso
    uint8_t tucss
    uint8_t tucso
    uint8_t hdr_len
    uint8_t ip
    uint8_t tcp

cdef struct TxPacket:               # the packet being gathered
    uint32_t size
    uint32_t nfrag                  # its elements: burst.iov[burst.k + 1 ..]
    uint32_t descs                  # descriptors seen
    bint in_buf                     # the first element is tx_buf
    bint lost                       # a part lies outside guest memory
    bint over                       # too long to segment: dropped whole
    bint tse
    bint vlan
    uint8_t popts
    uint8_t css
    uint8_t cso
    bint legacy_csum
    uint16_t vlan_tci

cdef struct TxCounts:               # not yet in the statistics registers
    uint64_t nbytes
    uint32_t frames
    uint32_t sizes[7]               # the last one: runts
    uint32_t multicast
    uint32_t broadcast

cdef struct TxBurst:
    TxCounts counts
    Packet pkts[NET_BURST]
    iovec iov[TX_IOV]
    uint8_t hdr[NET_BURST][NET_MAX_HDR + 8]
    uint32_t n                      # packets complete
    uint32_t k                      # elements they use
    uint32_t ndesc                  # descriptors to write back, from `first` on
    uint32_t first
    uint16_t back[TX_DESCS]         # 0x100 | status byte to write back, or 0: not asked for
    bint buf_used                   # a complete packet refers to tx_buf

cdef struct E1000State:
    NetClientState *nc
    LoopState *loop
    GuestMem *mem
    IrqState *irq
    uint32_t ways                   # WAY_*
    uint32_t has                    # HAS_*
    uint16_t device_id
    uint16_t phy_id2
    bint bus_master
    uint8_t mac_addr[6]
    uint32_t mac[MAC_REGS]
    uint16_t phy[32]
    uint16_t eeprom[64]
    uint32_t io_addr                # IOADDR, 13.2.2
    # Microwire
    uint32_t ee_in
    uint16_t ee_bits_in
    uint16_t ee_bits_out
    bint ee_reading
    uint32_t ee_last
    # receive
    uint32_t rx_bufsize
    uint32_t rx_min_shift
    # transmit
    TxContext sum_ctx
    TxContext tso_ctx
    TxPacket pkt
    uint8_t *tx_buf
    TxBurst *burst
    uint8_t tx_busy
    # interrupts
    int line                        # the level that the chip asks for
    bint intx_off                   # PCI COMMAND: interrupt disable
    bint window                     # a mitigation window is open
    bint ide                        # a descriptor asked for delay since the last window
    Timer mit_timer
    Timer an_timer
    Timer rx_timer
    uint64_t mmio_reads
    uint64_t mmio_writes

# Causes and the line.
cdef void set_icr(E1000State *s, uint32_t value) noexcept nogil
cdef void set_cause(E1000State *s, uint32_t causes) noexcept nogil
cdef void update_irq(E1000State *s) noexcept nogil
cdef void sync_irq(E1000State *s) noexcept nogil
cdef void mit_expired(void *opaque) noexcept nogil
# The rings. transmit: from TDH to TDT, as a doorbell does.
cdef void transmit(E1000State *s) noexcept nogil
cdef bint chip_can_receive(NetClientState *nc) noexcept nogil
cdef uint32_t chip_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil
