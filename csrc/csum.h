/* SPDX-License-Identifier: MIT
 * Internet checksum (RFC 1071) over bytes and iovecs, and the CRC-32 of IEEE 802.3.
 *
 * Sums are partial ones' complement sums of 16-bit words in memory order: fold and complement (qn_csum_fold) gives a
 * value to store in memory as it is, by memcpy, on either byte order. A partial sum is a plain number, so two of them are
 * joined by `+`; it grows by less than 2^32 for every four bytes, so 8 GiB fit. Nothing here reads past what it is given,
 * and nothing is written but results. All functions are reentrant. */
#ifndef QN_CSUM_H
#define QN_CSUM_H
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Partial sum of `len` bytes at `p` (any alignment) added to `sum`. The bytes must start at an even offset of the summed
 * area; for a chunk that starts at an odd one, sum it from 0 and join it with qn_csum_add_odd. */
uint64_t qn_csum(const void *p, size_t len, uint64_t sum);

/* `sum` plus the partial sum `part` of bytes that start at an odd offset of the summed area. */
uint64_t qn_csum_add_odd(uint64_t sum, uint64_t part);

/* Sum of bytes [off, off + len) of an iovec array; less where the array is shorter. `off` may be odd and the array may be
 * split anywhere: words are counted from `off`. */
uint64_t qn_csum_iov(const struct iovec *iov, unsigned iovcnt, size_t off, size_t len, uint64_t sum);

/* Fold to 16 bits, not complemented. 0 only for a sum of 0. */
uint16_t qn_csum_fold(uint64_t sum);

/* Sum of the TCP/UDP pseudo header (RFC 793 3.1, RFC 8200 8.1); addresses (4 or 16 bytes) as they stand in the packet. */
uint64_t qn_csum_pseudo4(const void *src, const void *dst, uint8_t proto, uint32_t l4_len);
uint64_t qn_csum_pseudo6(const void *src, const void *dst, uint8_t proto, uint32_t l4_len);

/* The 16 bits (memory order) that complete the checksum of a packet with VIRTIO_NET_HDR_F_NEEDS_CSUM (virtio 1.3, 5.1.6.2):
 * they belong at csum_start + csum_offset, where the seed, a pseudo-header sum, stands now. 0 comes out as 0xFFFF.
 * The packet is not written. 0, or -EINVAL when the field does not lie in `size` bytes or the iovecs hold fewer. */
int qn_csum_partial_value(const struct iovec *iov, unsigned iovcnt, size_t size, unsigned csum_start,
                          unsigned csum_offset, uint16_t *out);

/* What qn_rx_csum_check found in a received frame. */
#define QN_RX_IP4 1     /* a whole IPv4 header */
#define QN_RX_IP4_OK 2  /* ... with a good checksum */
#define QN_RX_L4 4      /* TCP or UDP with a checksum that can be checked */
#define QN_RX_L4_OK 8   /* ... and is good */
#define QN_RX_UDP 16    /* ... of UDP; without this bit, of TCP. Only beside QN_RX_L4 */

/* Checks the checksums of a frame as a NIC does (Intel 8254x manual, 3.2.9): Ethernet with up to two VLAN tags, IPv4 with
 * options, IPv6 with hop-by-hop, routing and destination options; TCP and UDP. Not checkable: fragments, lengths that
 * disagree with the frame or each other, UDP without checksum, IPv6 still to be routed on, headers beyond the first
 * 256 bytes. Bytes after the IP datagram (padding) are no part of a sum. Flags above; 0 for anything else. */
int qn_rx_csum_check(const struct iovec *iov, unsigned iovcnt, size_t size);

/* CRC-32 of IEEE 802.3 3.2.9 (reflected, preset and complemented): the FCS, least significant byte first on the wire. */
uint32_t qn_crc32(const void *p, size_t len);
#endif
