# Ethernet frames: constants and accessors. Inline, nogil, no .pyx. Lengths exclude the FCS.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

cdef enum:
    ETH_ALEN = 6
    ETH_HLEN = 14
    ETH_ZLEN = 60              # IEEE 802.3 3.2.8: the shortest frame, without FCS
    ETH_FCS_LEN = 4
    ETH_P_IP = 0x0800
    ETH_P_ARP = 0x0806
    ETH_P_RARP = 0x8035
    ETH_P_VLAN = 0x8100
    ETH_P_QINQ = 0x88A8
    ETH_P_IPV6 = 0x86DD

cdef inline uint16_t be16(const uint8_t *p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])

cdef inline bint eth_is_multicast(const uint8_t *frame) noexcept nogil:
    return frame[0] & 1

cdef inline bint eth_is_broadcast(const uint8_t *frame) noexcept nogil:
    return (frame[0] & frame[1] & frame[2] & frame[3] & frame[4] & frame[5]) == 0xff
