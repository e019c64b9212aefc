/* SPDX-License-Identifier: MIT
 * Where the headers of a frame are. Shared by csum.c and gso.c, not for others.
 *
 * Frames may lie in guest memory that changes under our feet: headers are copied once (qn_iov_prefix) and parsed in the copy. */
#ifndef QN_PARSE_H
#define QN_PARSE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

enum { QN_PARSE_MAX = 256 }; /* bytes of a frame that are looked at */

enum { QN_TCP = 6, QN_UDP = 17 };
enum { QN_TCP_SUM = 16, QN_UDP_SUM = 6 }; /* offset of the checksum in its header */

struct qn_headers {
    uint8_t ip_version; /* 4 or 6 when the whole IP header is there, else 0 and nothing below holds */
    uint8_t l4_proto;   /* 6 or 17 when the whole fixed L4 header (TCP: and its options) is there, else 0 */
    uint8_t fragment;   /* part of a fragmented datagram; l4_proto is 0 */
    uint8_t routed;     /* an IPv6 routing header has segments left: the last destination is not in the IPv6 header */
    uint16_t ip_off;
    uint16_t l4_off;    /* end of the IP header and its options or extension headers */
    uint16_t l4_hdr;    /* length of the L4 header */
    uint32_t ip_len;    /* bytes from ip_off to the datagram's end, as the header says; 0 when its length field is 0 */
};

static inline unsigned qn_be16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}

static inline void qn_put_be16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline uint32_t qn_be32(const uint8_t *p)
{
    return (uint32_t)qn_be16(p) << 16 | qn_be16(p + 2);
}

static inline void qn_put_be32(uint8_t *p, uint32_t v)
{
    qn_put_be16(p, v >> 16);
    qn_put_be16(p + 2, v & 0xffff);
}

/* Copies the first bytes, at most `len`; returns how many there were. */
static inline size_t qn_iov_prefix(const struct iovec *iov, unsigned iovcnt, uint8_t *to, size_t len)
{
    size_t done = 0;
    for (unsigned i = 0; i < iovcnt && done < len; i++) {
        size_t n = iov[i].iov_len < len - done ? iov[i].iov_len : len - done;
        if (n) /* an empty iovec may have a null base */
            memcpy(to + done, iov[i].iov_base, n);
        done += n;
    }
    return done;
}

/* Whether the array holds `size` bytes; stops as soon as it does, so no sum of lengths can wrap. */
static inline int qn_iov_holds(const struct iovec *iov, unsigned iovcnt, size_t size)
{
    for (unsigned i = 0; i < iovcnt && size; i++)
        size -= iov[i].iov_len < size ? iov[i].iov_len : size;
    return size == 0;
}

/* `h`: the first `len` bytes of a frame, at most QN_PARSE_MAX. */
static inline void qn_parse(const uint8_t *h, size_t len, struct qn_headers *out)
{
    size_t at = 14;
    unsigned type, next;

    memset(out, 0, sizeof *out);
    if (len < at)
        return;
    type = qn_be16(h + 12);
    for (int tags = 0; tags < 2 && (type == 0x8100 || type == 0x88a8 || type == 0x9100); tags++) {
        if (len < at + 4)
            return;
        type = qn_be16(h + at + 2);
        at += 4;
    }

    if (type == 0x0800) { /* RFC 791 3.1 */
        if (len < at + 20 || h[at] >> 4 != 4)
            return;
        size_t ihl = (size_t)(h[at] & 15) * 4;
        if (ihl < 20 || len < at + ihl)
            return;
        out->ip_version = 4;
        out->ip_off = (uint16_t)at;
        out->ip_len = qn_be16(h + at + 2);
        out->fragment = (qn_be16(h + at + 6) & 0x3fff) != 0;
        next = h[at + 9];
        at += ihl;
    } else if (type == 0x86dd) { /* RFC 8200 3, 4 */
        if (len < at + 40 || h[at] >> 4 != 6)
            return;
        out->ip_version = 6;
        out->ip_off = (uint16_t)at;
        out->ip_len = qn_be16(h + at + 4);
        out->ip_len += out->ip_len ? 40 : 0;
        next = h[at + 6];
        at += 40;
        while (next == 0 || next == 43 || next == 60) { /* 8 bytes or more a turn: ends */
            if (len < at + 8 || len < at + 8 + (size_t)h[at + 1] * 8) {
                next = 59; /* not all in sight: as if nothing followed */
                break;
            }
            if (next == 43 && h[at + 3])
                out->routed = 1;
            next = h[at];
            at += 8 + (size_t)h[at + 1] * 8;
        }
        out->fragment = next == 44;
    } else {
        return;
    }

    out->l4_off = (uint16_t)at;
    if (out->fragment)
        return;
    if (next == QN_UDP && len >= at + 8) {
        out->l4_proto = QN_UDP;
        out->l4_hdr = 8;
    } else if (next == QN_TCP && len >= at + 20) {
        unsigned doff = (unsigned)(h[at + 12] >> 4) * 4;
        if (doff < 20 || len < at + doff)
            return;
        out->l4_proto = QN_TCP;
        out->l4_hdr = (uint16_t)doff;
    }
}
#endif
