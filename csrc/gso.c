/* SPDX-License-Identifier: MIT */
#include "gso.h"
#include "csum.h"
#include "parse.h"

#include <errno.h>

_Static_assert((int)QN_GSO_MAX_HDR == (int)QN_PARSE_MAX, "what can be parsed can be repeated");

enum { GSO_TCPV4 = 1, GSO_TCPV6 = 4, GSO_UDP_L4 = 5 };               /* virtio 1.3, 5.1.6 */
enum { TCP_SEQ = 4, TCP_FLAGS = 13, FIN = 0x01, PSH = 0x08, CWR = 0x80 }; /* RFC 9293 3.1 */

int qn_gso_plan_vnet(struct qn_gso_plan *plan, const struct iovec *iov, unsigned iovcnt, size_t size,
                     unsigned gso_type, unsigned gso_size, unsigned csum_start, unsigned csum_offset)
{
    uint8_t h[QN_GSO_MAX_HDR];
    struct qn_headers at;
    size_t len = size < sizeof h ? size : sizeof h;

    if (gso_size == 0 || gso_size > 0xffff || qn_iov_prefix(iov, iovcnt, h, len) < len)
        return -EINVAL;
    qn_parse(h, len, &at);

    unsigned proto = gso_type == GSO_UDP_L4 ? QN_UDP : QN_TCP;
    unsigned sum_offset = proto == QN_UDP ? QN_UDP_SUM : QN_TCP_SUM;
    size_t hdr_len = (size_t)at.l4_off + at.l4_hdr;
    if (gso_type != GSO_TCPV4 && gso_type != GSO_TCPV6 && gso_type != GSO_UDP_L4)
        return -EINVAL;
    if (!at.ip_version || at.l4_proto != proto || (gso_type == GSO_TCPV4 && at.ip_version != 4) ||
        (gso_type == GSO_TCPV6 && at.ip_version != 6))
        return -EINVAL;
    if (csum_start != at.l4_off || csum_offset != sum_offset || hdr_len >= size)
        return -EINVAL;
    /* Senders leave the length fields of a super-frame right or 0; anything else is no super-frame. */
    if (at.ip_len && at.ip_len != size - at.ip_off)
        return -EINVAL;
    unsigned udp_len = proto == QN_UDP ? qn_be16(h + at.l4_off + 4) : 0;
    if (udp_len && udp_len != size - at.l4_off)
        return -EINVAL;
    if (size - at.l4_off > UINT32_MAX)
        return -EINVAL;

    *plan = (struct qn_gso_plan){
        .hdr_len = (uint16_t)hdr_len,
        .mss = (uint16_t)gso_size,
        .ip_off = at.ip_off,
        .ip_version = at.ip_version,
        .l4_proto = at.l4_proto,
        .l4_off = at.l4_off,
        .ip_sum = at.ip_version == 4,
        .l4_sum = 1,
        .ip_sum_from = at.ip_off,
        .ip_sum_at = (uint16_t)(at.ip_off + 10),
        .ip_sum_end = at.l4_off,
        .l4_sum_from = at.l4_off,
        .l4_sum_at = (uint16_t)(at.l4_off + sum_offset),
        .l4_sum_end = 0,
        .pseudo_len = (uint32_t)(size - at.l4_off),
    };
    return 0;
}

/* A checksum field and the start of its range lie in the header, and the range is not empty. */
static int range_fits(unsigned from, unsigned at, unsigned end, unsigned hdr_len)
{
    return from < hdr_len && at + 2 <= hdr_len && (end == 0 || end > from);
}

static int plan_fits(const struct qn_gso_plan *p)
{
    unsigned ip_hdr = p->ip_version == 6 ? 40 : 20, l4_hdr = p->l4_proto == QN_UDP ? 8 : p->l4_proto == QN_TCP ? 20 : 0;

    if (p->hdr_len == 0 || p->hdr_len > QN_GSO_MAX_HDR || p->mss == 0)
        return 0;
    if (p->ip_version && ((p->ip_version != 4 && p->ip_version != 6) || p->ip_off + ip_hdr > p->hdr_len))
        return 0;
    if ((p->l4_proto && !l4_hdr) || p->l4_off + l4_hdr > p->hdr_len)
        return 0;
    return (!p->ip_sum || range_fits(p->ip_sum_from, p->ip_sum_at, p->ip_sum_end, p->hdr_len)) &&
           (!p->l4_sum || range_fits(p->l4_sum_from, p->l4_sum_at, p->l4_sum_end, p->hdr_len));
}

/* The part of a checksum range that lies in the header `h`, and the part that lies in the payload. */
static uint64_t header_sum(const uint8_t *h, unsigned hdr_len, unsigned from, unsigned end)
{
    return qn_csum(h + from, (end && end < hdr_len ? end : hdr_len) - from, 0);
}

static uint64_t payload_sum(const struct iovec *payload, unsigned n, unsigned hdr_len, unsigned from, unsigned end)
{
    if (end && end <= hdr_len)
        return 0;
    uint64_t sum = qn_csum_iov(payload, n, 0, end ? end - hdr_len : SIZE_MAX, 0);
    return (hdr_len - from) & 1 ? qn_csum_add_odd(0, sum) : sum;
}

static void store_sum(uint8_t *at, uint64_t sum)
{
    uint16_t value = (uint16_t)~qn_csum_fold(sum);
    value = value ? value : 0xffff;
    memcpy(at, &value, 2);
}

/* The seed at `at` with one length taken out and another put in (RFC 1624). */
static void reseed(uint8_t *at, uint32_t old_len, uint32_t new_len)
{
    uint32_t sum = qn_be16(at) + (0xffff - (old_len & 0xffff)) + (0xffff - (old_len >> 16)) + (new_len & 0xffff) + (new_len >> 16);

    sum = (sum & 0xffff) + (sum >> 16);
    qn_put_be16(at, (sum & 0xffff) + (sum >> 16));
}

/* The header in `g` is that of the next segment, checksums aside. It is patched one segment ahead: to copy or sum it right
 * after the small stores would wait for them. */
static void set_lengths(struct qn_gso *g, uint32_t old_l4_len, size_t size)
{
    const struct qn_gso_plan *p = &g->plan;

    if (p->ip_version)
        qn_put_be16(g->hdr + p->ip_off + (p->ip_version == 4 ? 2 : 4), (unsigned)(size - p->ip_off) - (p->ip_version == 4 ? 0 : 40));
    if (p->l4_proto == QN_UDP)
        qn_put_be16(g->hdr + p->l4_off + 4, (unsigned)(size - p->l4_off));
    if (p->l4_sum)
        reseed(g->hdr + p->l4_sum_at, old_l4_len, (uint32_t)(size - p->l4_off));
}

static void set_tcp_flags(struct qn_gso *g)
{
    unsigned gone = (g->seg ? CWR : 0) | (g->seg + 1 < g->nseg ? FIN | PSH : 0);

    g->hdr[g->plan.l4_off + TCP_FLAGS] = (uint8_t)(g->tcp_flags & ~gone);
}

static void set_next(struct qn_gso *g)
{
    const struct qn_gso_plan *p = &g->plan;
    uint8_t *id = g->hdr + p->ip_off + 4, *seq = g->hdr + p->l4_off + TCP_SEQ;

    g->seg++;
    if (p->ip_version == 4)
        qn_put_be16(id, qn_be16(id) + 1);
    if (p->l4_proto == QN_TCP) {
        qn_put_be32(seq, qn_be32(seq) + p->mss);
        set_tcp_flags(g);
    }
    if (g->left < p->mss)
        set_lengths(g, (uint32_t)p->hdr_len + p->mss - p->l4_off, p->hdr_len + g->left);
}

int qn_gso_start(struct qn_gso *g, const struct qn_gso_plan *plan, const struct iovec *iov, unsigned iovcnt, size_t size)
{
    const struct qn_gso_plan p = *plan;

    if (!plan_fits(&p) || size <= p.hdr_len || !qn_iov_holds(iov, iovcnt, size))
        return -EINVAL;
    size_t payload = size - p.hdr_len;
    size_t nseg = payload / p.mss + (payload % p.mss != 0);
    size_t most = p.hdr_len + (payload < p.mss ? payload : p.mss);
    if (nseg > 65535)
        return -EINVAL;
    if ((p.ip_version && most - p.ip_off > 65535) || (p.l4_proto == QN_UDP && most - p.l4_off > 65535))
        return -EINVAL;

    g->plan = p;
    qn_iov_prefix(iov, iovcnt, g->hdr, p.hdr_len);
    size_t skip = p.hdr_len;
    while (skip >= iov->iov_len) { /* ends: there is payload */
        skip -= iov->iov_len;
        iov++;
        iovcnt--;
    }
    g->iov = iov;
    g->iovcnt = iovcnt;
    g->iov_skip = skip;
    g->left = payload;
    g->seg = 0;
    g->nseg = (uint32_t)nseg;

    if (p.ip_sum && p.ip_version == 4 && p.ip_sum_at == p.ip_off + 10)
        qn_put_be16(g->hdr + p.ip_sum_at, 0);
    set_lengths(g, p.pseudo_len, most);
    if (p.l4_proto == QN_TCP) {
        g->tcp_flags = g->hdr[p.l4_off + TCP_FLAGS];
        set_tcp_flags(g);
    }
    return (int)nseg;
}

int qn_gso_next(struct qn_gso *g, uint8_t *hdr, struct iovec *out, unsigned max, size_t *size_out)
{
    const struct qn_gso_plan *p = &g->plan;
    const struct iovec *iov = g->iov;
    unsigned iovcnt = g->iovcnt, used = 1;
    size_t skip = g->iov_skip;
    size_t payload = g->left < p->mss ? g->left : p->mss;

    if (!payload)
        return 0;
    if (!max)
        return -ENOSPC;
    for (size_t want = payload; want;) { /* ends: qn_gso_start has counted the bytes */
        size_t n = iov->iov_len - skip;
        if (n > want)
            n = want;
        if (n) {
            if (used == max)
                return -ENOSPC;
            out[used].iov_base = (uint8_t *)iov->iov_base + skip;
            out[used++].iov_len = n;
        }
        want -= n;
        skip += n;
        if (skip == iov->iov_len && (want || iovcnt > 1)) {
            iov++;
            iovcnt--;
            skip = 0;
        }
    }
    g->iov = iov;
    g->iovcnt = iovcnt;
    g->iov_skip = skip;
    g->left -= payload;
    *size_out = p->hdr_len + payload;
    out[0].iov_base = hdr;
    out[0].iov_len = p->hdr_len;

    memcpy(hdr, g->hdr, p->hdr_len);
    if (p->ip_sum)
        store_sum(hdr + p->ip_sum_at, header_sum(g->hdr, p->hdr_len, p->ip_sum_from, p->ip_sum_end) +
                                          payload_sum(out + 1, used - 1, p->hdr_len, p->ip_sum_from, p->ip_sum_end));
    uint64_t sum = p->l4_sum ? header_sum(hdr, p->hdr_len, p->l4_sum_from, p->l4_sum_end) : 0;
    if (g->left)
        set_next(g);
    if (p->l4_sum)
        store_sum(hdr + p->l4_sum_at, sum + payload_sum(out + 1, used - 1, p->hdr_len, p->l4_sum_from, p->l4_sum_end));
    return (int)used;
}
