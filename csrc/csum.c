/* SPDX-License-Identifier: MIT */
#include "csum.h"
#include "parse.h"

#include <errno.h>

/* Vectors of 64-bit lanes, loaded at any address. Two sums per lane, of the lanes (modulo 2^64) and of their upper halves: the
 * sum of the lower halves is the first less the second shifted, so a lane costs an add, a shift and an add. Exact for 2^32
 * vectors. A macro, because the compiler splits wide vectors of an inline function before it knows the caller's target. */
typedef uint64_t vec16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t vec32 __attribute__((vector_size(32), aligned(1), may_alias));

#define DEFINE_SUM(name, vec, attr)                                                                                    \
    attr static uint64_t name(const uint8_t *p, size_t n, uint64_t sum)                                                \
    {                                                                                                                  \
        const vec *v = (const vec *)p;                                                                                 \
        vec all0 = {0}, all1 = {0}, high0 = {0}, high1 = {0};                                                          \
        for (; n >= 4; n -= 4, v += 4) {                                                                               \
            vec a = v[0], b = v[1], c = v[2], d = v[3];                                                                \
            all0 += a;                                                                                                 \
            all1 += b;                                                                                                 \
            high0 += a >> 32;                                                                                          \
            high1 += b >> 32;                                                                                          \
            all0 += c;                                                                                                 \
            all1 += d;                                                                                                 \
            high0 += c >> 32;                                                                                          \
            high1 += d >> 32;                                                                                          \
        }                                                                                                              \
        for (; n; n--, v++) {                                                                                          \
            all0 += v[0];                                                                                              \
            high0 += v[0] >> 32;                                                                                       \
        }                                                                                                              \
        high0 += high1;                                                                                                \
        all0 += all1 + high0 - (high0 << 32);                                                                          \
        for (unsigned i = 0; i < sizeof all0 / 8; i++)                                                                 \
            sum += all0[i];                                                                                            \
        return sum;                                                                                                    \
    }

DEFINE_SUM(sum_vec16, vec16, )

#if defined(__x86_64__) && !defined(QN_CSUM_BASELINE) /* defined by the tests, to run the other branch */
/* Wheels are built for the baseline, so the wider vectors are chosen at run time; not by ifunc, which musl lacks. */
DEFINE_SUM(sum_vec32, vec32, __attribute__((target("avx2"))))

static uint64_t sum_blocks(const uint8_t *p, size_t n, uint64_t sum)
{
    return __builtin_cpu_supports("avx2") ? sum_vec32(p, n, sum) : sum_vec16(p, n * 2, sum);
}
#else
static uint64_t sum_blocks(const uint8_t *p, size_t n, uint64_t sum)
{
    return sum_vec16(p, n * 2, sum);
}
#endif

static inline uint64_t load_sum(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, 8);
    return (uint32_t)x + (x >> 32);
}

uint64_t qn_csum(const void *data, size_t len, uint64_t sum)
{
    const uint8_t *p = data;
    uint32_t w;
    uint16_t h;

    if (len >= 64) {
        sum = sum_blocks(p, len / 32, sum);
        p += len & ~(size_t)31;
        len &= 31;
    }
    /* No loop: headers are short, and a vectorized loop is slow to start. */
    if (len & 32) {
        sum += load_sum(p) + load_sum(p + 8) + load_sum(p + 16) + load_sum(p + 24);
        p += 32;
    }
    if (len & 16) {
        sum += load_sum(p) + load_sum(p + 8);
        p += 16;
    }
    if (len & 8) {
        sum += load_sum(p);
        p += 8;
    }
    if (len & 4) {
        memcpy(&w, p, 4);
        sum += w;
        p += 4;
    }
    if (len & 2) {
        memcpy(&h, p, 2);
        sum += h;
        p += 2;
    }
    if (len & 1) { /* as if a zero byte followed */
        h = 0;
        memcpy(&h, p, 1);
        sum += h;
    }
    return sum;
}

uint64_t qn_csum_add_odd(uint64_t sum, uint64_t part)
{
    /* Times 2^8 modulo 2^16 - 1 swaps the bytes (RFC 1071 2.B). */
    return sum + (((part & 0xffffffff) + (part >> 32)) << 8);
}

uint64_t qn_csum_iov(const struct iovec *iov, unsigned iovcnt, size_t off, size_t len, uint64_t sum)
{
    size_t done = 0;

    for (; iovcnt && done < len; iov++, iovcnt--) {
        if (off >= iov->iov_len) {
            off -= iov->iov_len;
            continue;
        }
        const uint8_t *p = (const uint8_t *)iov->iov_base + off;
        size_t n = iov->iov_len - off;
        n = n < len - done ? n : len - done;
        off = 0;
        if (done & 1)
            sum = qn_csum_add_odd(sum, qn_csum(p, n, 0));
        else
            sum = qn_csum(p, n, sum);
        done += n;
    }
    return sum;
}

uint16_t qn_csum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* The words of the length and the protocol; each sum is of 16-bit words in memory order. */
static inline uint64_t pseudo_tail(uint8_t proto, uint32_t l4_len)
{
    uint64_t words = (l4_len >> 16) + (l4_len & 0xffff) + proto;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    words <<= 8; /* a swap of bytes, modulo 2^16 - 1 */
#endif
    return words;
}

uint64_t qn_csum_pseudo4(const void *src, const void *dst, uint8_t proto, uint32_t l4_len)
{
    return qn_csum(src, 4, qn_csum(dst, 4, pseudo_tail(proto, l4_len)));
}

uint64_t qn_csum_pseudo6(const void *src, const void *dst, uint8_t proto, uint32_t l4_len)
{
    return qn_csum(src, 16, qn_csum(dst, 16, pseudo_tail(proto, l4_len)));
}

int qn_csum_partial_value(const struct iovec *iov, unsigned iovcnt, size_t size, unsigned csum_start,
                          unsigned csum_offset, uint16_t *out)
{
    if ((uint64_t)csum_start + csum_offset + 2 > size || !qn_iov_holds(iov, iovcnt, size))
        return -EINVAL;
    uint16_t value = (uint16_t)~qn_csum_fold(qn_csum_iov(iov, iovcnt, csum_start, size - csum_start, 0));
    *out = value ? value : 0xffff;
    return 0;
}

int qn_rx_csum_check(const struct iovec *iov, unsigned iovcnt, size_t size)
{
    uint8_t h[QN_PARSE_MAX];
    struct qn_headers at;
    int flags = 0;

    size_t len = size < sizeof h ? size : sizeof h;
    if (!qn_iov_holds(iov, iovcnt, size))
        return 0;
    qn_iov_prefix(iov, iovcnt, h, len);
    qn_parse(h, len, &at);
    if (!at.ip_version)
        return 0;

    const uint8_t *ip = h + at.ip_off, *l4 = h + at.l4_off;
    size_t ip_hdr = (size_t)at.l4_off - at.ip_off; /* with options or extension headers */
    if (at.ip_version == 4) {
        flags |= QN_RX_IP4;
        if (qn_csum_fold(qn_csum(ip, ip_hdr, 0)) == 0xffff)
            flags |= QN_RX_IP4_OK;
    }
    if (!at.l4_proto || at.routed || at.ip_len > size - at.ip_off || at.ip_len < ip_hdr + at.l4_hdr)
        return flags;

    uint32_t l4_len = at.ip_len - (uint32_t)ip_hdr;
    if (at.l4_proto == QN_UDP) {
        uint32_t udp_len = qn_be16(l4 + 4);
        if (udp_len < 8 || udp_len > l4_len || qn_be16(l4 + QN_UDP_SUM) == 0)
            return flags;
        l4_len = udp_len;
        flags |= QN_RX_UDP;
    }
    flags |= QN_RX_L4;
    uint64_t sum = at.ip_version == 4 ? qn_csum_pseudo4(ip + 12, ip + 16, at.l4_proto, l4_len)
                                      : qn_csum_pseudo6(ip + 8, ip + 24, at.l4_proto, l4_len);
    if (qn_csum_fold(qn_csum_iov(iov, iovcnt, at.l4_off, l4_len, sum)) == 0xffff)
        flags |= QN_RX_L4_OK;
    return flags;
}

uint32_t qn_crc32(const void *data, size_t len)
{
    /* CRC of each nibble: small beats fast for the six bytes of a multicast address. */
    static const uint32_t nibble[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    const uint8_t *p = data;
    uint32_t crc = 0xffffffff;

    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];
        crc = crc >> 4 ^ nibble[crc & 15];
        crc = crc >> 4 ^ nibble[crc & 15];
    }
    return ~crc;
}
