/* SPDX-License-Identifier: MIT
 * Software segmentation of TCP and UDP super-frames, with no copy of payload: every segment is a fresh copy of the
 * headers plus slices of the caller's iovecs. The caller's bytes are never written.
 *
 * A plan says where the fields are. qn_gso_plan_vnet derives it from a frame and the fields of a virtio-net header
 * (virtio 1.3, 5.1.6); a NIC model may fill it from its own context descriptor instead (Intel 8254x manual, 3.5). All offsets
 * are from the frame's start.
 *
 * What changes from segment to segment, n counting from 0:
 *   IPv4  total length; identification + n; the header checksum if ip_sum is set
 *   IPv6  payload length
 *   TCP   sequence number + n * mss; PSH and FIN only on the last, CWR only on the first (RFC 3168 6.1.2)
 *   UDP   length
 * and the L4 checksum if l4_sum is set: the seed at l4_sum_at, an uncomplemented pseudo-header sum, has pseudo_len replaced by
 * the segment's own L4 length (its bytes from l4_off on), then the sum of its range is stored complemented, 0 as 0xFFFF. */
#ifndef QN_GSO_H
#define QN_GSO_H
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define QN_GSO_MAX_HDR 256

struct qn_gso_plan {
    uint16_t hdr_len;    /* bytes repeated in front of every segment, 1..QN_GSO_MAX_HDR */
    uint16_t mss;        /* payload bytes per segment, > 0 */
    uint16_t ip_off;     /* start of the IP header */
    uint8_t ip_version;  /* 4, 6, or 0: touch no IP field */
    uint8_t l4_proto;    /* 6 TCP, 17 UDP, 0: touch no L4 field */
    uint16_t l4_off;     /* start of the L4 header */
    uint8_t ip_sum;      /* store a checksum of [ip_sum_from, ip_sum_end or the frame's end) at ip_sum_at */
    uint8_t l4_sum;      /* store a checksum of [l4_sum_from, l4_sum_end or the frame's end) at l4_sum_at */
    uint16_t ip_sum_from, ip_sum_at, ip_sum_end;    /* end exclusive; 0: to the end of the frame */
    uint16_t l4_sum_from, l4_sum_at, l4_sum_end;    /* end exclusive; 0: to the end of the frame */
    uint32_t pseudo_len; /* L4 length that the seed found at l4_sum_at already includes; it is replaced by the segment's own */
};

struct qn_gso {
    struct qn_gso_plan plan;
    uint8_t hdr[QN_GSO_MAX_HDR];  /* the next segment's header, checksums aside */
    const struct iovec *iov;      /* where the next payload byte is */
    unsigned iovcnt;
    size_t iov_skip;
    size_t left;                  /* payload bytes not yet handed out */
    uint32_t seg;                 /* index of the next segment */
    uint32_t nseg;                /* segments in all */
    uint8_t tcp_flags;            /* the super-frame's */
};

/* Fill `plan` for a frame of `size` bytes that carries virtio-net GSO fields; gso_type without the ECN bit.
 * Types: 1 TCPV4, 4 TCPV6, 5 UDP_L4. 0 or -EINVAL: fields that do not fit the frame (never reads outside it).
 * The header length comes from parsing, not from the sender: Ethernet, up to two VLAN tags, IPv4 with options or IPv6 with
 * hop-by-hop, routing and destination options, TCP with options or UDP, all within QN_GSO_MAX_HDR bytes. csum_start and
 * csum_offset must be those of that L4 header. Length fields of the super-frame must be its real ones or 0. */
int qn_gso_plan_vnet(struct qn_gso_plan *plan, const struct iovec *iov, unsigned iovcnt, size_t size,
                     unsigned gso_type, unsigned gso_size, unsigned csum_start, unsigned csum_offset);

/* Begin; copies the header once (no double fetch) and keeps `iov`, which must live until the last segment is out. Number of
 * segments (>= 1) or -EINVAL: a plan whose fields leave the header (fixed IP and L4 headers must lie in hdr_len, checksum
 * ranges must start in it and not be empty), mss 0, no payload, more than 65535 segments, a segment whose IP length field
 * would overflow, iovecs shorter than `size`.
 * A checksum's own field at ip_off + 10 of an IPv4 header counts as 0; anywhere else what stands there is part of the sum. */
int qn_gso_start(struct qn_gso *g, const struct qn_gso_plan *plan, const struct iovec *iov, unsigned iovcnt, size_t size);

/* Next segment: writes plan.hdr_len bytes to `hdr`, fills out[0] with it and out[1..] with payload slices, checksums
 * stored in `hdr`. Returns the number of iovecs used (<= max, max >= 2), 0 when done, -ENOSPC when `max` is too small
 * (state unchanged). *size_out is the segment's length. Every segment's L4 checksum is right when plan.l4_sum is set. */
int qn_gso_next(struct qn_gso *g, uint8_t *hdr, struct iovec *out, unsigned max, size_t *size_out);
#endif
