/* SPDX-License-Identifier: MIT
 * Internet checksum (RFC 1071) over bytes and iovecs, and the CRC-32 of IEEE 802.3.
 *
 * Sums are partial ones' complement sums of 16-bit words in memory order: fold and complement
 * (qn_csum_fold) gives a value to store in memory as it is. Nothing here reads past what it is given. */
#ifndef QN_CSUM_H
#define QN_CSUM_H
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Partial sum of `len` bytes at `p` added to `sum`. A chunk that starts at an odd offset of the
 * summed area must be added with qn_csum_add_odd. */
uint64_t qn_csum(const void *p, size_t len, uint64_t sum);

/* Sum of bytes [off, off + len) of an iovec array; less where the array is shorter. */
uint64_t qn_csum_iov(const struct iovec *iov, unsigned iovcnt, size_t off, size_t len, uint64_t sum);

/* Fold to 16 bits, not complemented. */
uint16_t qn_csum_fold(uint64_t sum);

/* Sum of the TCP/UDP pseudo header (RFC 793 3.1, RFC 8200 8.1); addresses as they stand in the packet. */
uint64_t qn_csum_pseudo4(const void *src, const void *dst, uint8_t proto, uint32_t l4_len);
uint64_t qn_csum_pseudo6(const void *src, const void *dst, uint8_t proto, uint32_t l4_len);

uint32_t qn_crc32(const void *p, size_t len);
#endif
