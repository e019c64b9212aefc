/* SPDX-License-Identifier: MIT
 * Random frames, plans and iovecs against csrc, built with the sanitizers and run by test_csrc.py: csrc_fuzz SEED ROUNDS.
 * Every buffer is a heap block of exactly its size at a random alignment, so a byte too far is a report. */
#include "csum.h"
#include "gso.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(cond)                                                            \
    do {                                                                       \
        if (!(cond)) {                                                         \
            fprintf(stderr, "line %d, round %lu: %s\n", __LINE__, round_, #cond); \
            abort();                                                           \
        }                                                                      \
    } while (0)

enum { MAX_FRAME = 6000, MAX_IOV = 12 };

static unsigned long round_;
static uint64_t state;

static uint32_t rnd(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return below ? (uint32_t)(state >> 33) % below : 0;
}

struct pieces {
    struct iovec iov[MAX_IOV];
    void *block[MAX_IOV];
    unsigned n;
};

/* `len` bytes cut at random into heap blocks that end where the bytes end. */
static void cut(struct pieces *s, const uint8_t *bytes, size_t len)
{
    s->n = 1 + rnd(MAX_IOV);
    for (unsigned i = 0; i < s->n; i++) {
        size_t n = i + 1 == s->n ? len : rnd(2) ? rnd((uint32_t)len + 1) : rnd((uint32_t)(len < 40 ? len : 40) + 1);
        size_t lead = rnd(4);
        s->block[i] = malloc(n + lead + !(n + lead));
        s->iov[i].iov_base = n ? (uint8_t *)s->block[i] + lead : NULL;
        s->iov[i].iov_len = n;
        if (n)
            memcpy(s->iov[i].iov_base, bytes, n);
        bytes += n;
        len -= n;
    }
}

static size_t join(const struct iovec *iov, unsigned n, uint8_t *to)
{
    size_t len = 0;
    for (unsigned i = 0; i < n; i++) {
        if (iov[i].iov_len)
            memcpy(to + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    return len;
}

static void drop(struct pieces *s)
{
    for (unsigned i = 0; i < s->n; i++)
        free(s->block[i]);
}

/* RFC 1071 in its plainest form. */
static uint16_t plain_sum(const uint8_t *p, size_t len)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i++) {
        sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)sum;
}

static uint16_t as_number(uint16_t memory_order)
{
    uint8_t b[2];
    memcpy(b, &memory_order, 2);
    return (uint16_t)(b[0] << 8 | b[1]);
}

/* A frame that has something to parse, with a few bytes then spoilt. */
static size_t make_frame(uint8_t *f)
{
    size_t at = 12, len, l4;
    for (size_t i = 0; i < MAX_FRAME; i++)
        f[i] = (uint8_t)rnd(256);
    for (uint32_t tags = rnd(4); tags; tags--) {
        static const uint16_t tpid[] = {0x8100, 0x88a8, 0x9100};
        uint16_t t = tpid[rnd(3)];
        f[at] = (uint8_t)(t >> 8);
        f[at + 1] = (uint8_t)t;
        at += 4;
    }
    size_t ip = at + 2;
    len = ip + 20 + (rnd(3) ? rnd(MAX_FRAME - 300) : rnd(120));
    uint8_t proto = rnd(2) ? 6 : 17;
    if (rnd(2)) {
        uint32_t ihl = rnd(4) ? 5 + rnd(11) : rnd(16);
        f[at] = 8;
        f[at + 1] = 0;
        f[ip] = (uint8_t)(0x40 | ihl);
        f[ip + 2] = (uint8_t)((len - ip) >> 8);
        f[ip + 3] = (uint8_t)(len - ip);
        f[ip + 6] = f[ip + 7] = 0;
        f[ip + 9] = proto;
        l4 = ip + ihl * 4;
    } else {
        f[at] = 0x86;
        f[at + 1] = 0xdd;
        f[ip] = 0x60;
        f[ip + 4] = (uint8_t)((len - ip - 40) >> 8);
        f[ip + 5] = (uint8_t)(len - ip - 40);
        size_t next = ip + 6;
        l4 = ip + 40;
        for (uint32_t ext = rnd(5); ext; ext--) {
            static const uint8_t kind[] = {0, 43, 60, 44};
            f[next] = kind[rnd(rnd(8) ? 3 : 4)];
            next = l4;
            f[l4 + 1] = (uint8_t)(rnd(6) ? rnd(4) : rnd(30));
            f[l4 + 3] = (uint8_t)(rnd(4) == 0);
            l4 += 8 + (size_t)f[l4 + 1] * 8;
        }
        f[next] = proto;
    }
    if (proto == 6) {
        f[l4 + 12] = (uint8_t)((rnd(4) ? 5 + rnd(11) : rnd(16)) << 4);
    } else {
        f[l4 + 4] = (uint8_t)((len - l4) >> 8);
        f[l4 + 5] = (uint8_t)(len - l4);
    }
    for (uint32_t n = rnd(3) ? 0 : rnd(4); n; n--)
        f[rnd(200)] = (uint8_t)rnd(256);
    return rnd(4) ? len : rnd((uint32_t)len + 1);
}

static void try_sums(const struct pieces *s, const uint8_t *frame, size_t len)
{
    size_t off = rnd((uint32_t)len + 8), n = rnd((uint32_t)len + 8);
    size_t from = off < len ? off : len, have = n < len - from ? n : len - from;
    CHECK(as_number(qn_csum_fold(qn_csum_iov(s->iov, s->n, off, n, 0))) % 0xffff == plain_sum(frame + from, have) % 0xffff);

    size_t size = rnd(8) ? len : rnd((uint32_t)len + 20);
    unsigned start = rnd(16) ? rnd(300) : 0xffffffffU - rnd(3), offset = rnd(16) ? rnd(40) : 0xffffffffU - rnd(3);
    uint16_t value = 0;
    int fits = size <= len && (uint64_t)start + offset + 2 <= size;
    CHECK((qn_csum_partial_value(s->iov, s->n, size, start, offset, &value) == 0) == fits);
    if (fits)
        CHECK(value != 0 && as_number(value) % 0xffff == (uint16_t)~plain_sum(frame + start, size - start) % 0xffff);

    int flags = qn_rx_csum_check(s->iov, s->n, size);
    CHECK(flags >= 0 && flags < 32 && (size <= len || flags == 0));
    CHECK((flags & QN_RX_IP4) || !(flags & QN_RX_IP4_OK));
    CHECK((flags & QN_RX_L4) || !(flags & (QN_RX_L4_OK | QN_RX_UDP)));
}

/* Runs a plan to its end: payload in order, headers apart from the fields as they were, nothing more and nothing less. */
static int run(const struct qn_gso_plan *plan, const struct pieces *s, const uint8_t *frame, size_t size, int sane)
{
    struct qn_gso g;
    struct iovec out[MAX_IOV + 1];
    int nseg = qn_gso_start(&g, plan, s->iov, s->n, size);
    if (nseg < 1) {
        CHECK(nseg == -EINVAL);
        return 0;
    }
    uint8_t *hdr = malloc(plan->hdr_len), *flat = malloc(size), *want = malloc(size);
    size_t at = plan->hdr_len, seg_size = 0;
    int segs = 0;
    for (int used;; segs++) {
        unsigned max = rnd(3) ? MAX_IOV + 1 : 2;
        used = qn_gso_next(&g, hdr, out, max, &seg_size);
        if (used == -ENOSPC) {
            CHECK(max == 2);
            used = qn_gso_next(&g, hdr, out, MAX_IOV + 1, &seg_size);
        }
        if (used == 0)
            break;
        CHECK(used >= 2 && used <= MAX_IOV + 1 && seg_size <= size && out[0].iov_base == hdr);
        CHECK(join(out, (unsigned)used, flat) == seg_size);
        size_t payload = seg_size - plan->hdr_len;
        CHECK(payload == (size - at < plan->mss ? size - at : plan->mss));
        CHECK(memcmp(flat + plan->hdr_len, frame + at, payload) == 0);
        at += payload;
        memcpy(want, flat, seg_size);
        if (plan->l4_sum) {
            size_t end = plan->l4_sum_end && plan->l4_sum_end < seg_size ? plan->l4_sum_end : seg_size;
            int inside = plan->l4_sum_at >= plan->l4_sum_from && plan->l4_sum_at + 2U <= end;
            /* Put the seed back and complete it the plain way. */
            uint32_t l4_len = (uint32_t)(seg_size - plan->l4_off), gone = plan->pseudo_len;
            uint64_t seed = ((uint64_t)frame[plan->l4_sum_at] << 8) + frame[plan->l4_sum_at + 1];
            seed += l4_len + 0xffff - (gone >> 16) + 0xffff - (gone & 0xffff);
            while (seed >> 16)
                seed = (seed & 0xffff) + (seed >> 16);
            int alone = sane || !(plan->ip_sum || plan->ip_version || plan->l4_proto); /* no two fields on the same bytes */
            if (inside && alone) {
                want[plan->l4_sum_at] = (uint8_t)(seed >> 8);
                want[plan->l4_sum_at + 1] = (uint8_t)seed;
                uint16_t sum = (uint16_t)~plain_sum(want + plan->l4_sum_from, end - plan->l4_sum_from);
                CHECK((flat[plan->l4_sum_at] << 8 | flat[plan->l4_sum_at + 1]) % 0xffff == sum % 0xffff);
            }
            CHECK(flat[plan->l4_sum_at] || flat[plan->l4_sum_at + 1]);
        }
        CHECK(segs < nseg);
    }
    CHECK(segs == nseg && at == size && qn_gso_next(&g, hdr, out, 2, &seg_size) == 0);
    free(hdr);
    free(flat);
    free(want);
    return 1;
}

static uint16_t field(void)
{
    return (uint16_t)(rnd(3) ? rnd(64) : rnd(3) ? rnd(300) : rnd(65536));
}

int main(int argc, char **argv)
{
    static uint8_t frame[MAX_FRAME], after[MAX_FRAME];
    unsigned long vnet = 0, free_plan = 0, rounds = argc > 2 ? strtoul(argv[2], NULL, 0) : 1000;
    state = 0x9e3779b97f4a7c15 ^ (argc > 1 ? strtoull(argv[1], NULL, 0) : 0);
    for (round_ = 0; round_ < rounds; round_++) {
        struct pieces s;
        struct qn_gso_plan plan;
        size_t len = make_frame(frame), size = rnd(8) ? len : rnd((uint32_t)len + 20);
        cut(&s, frame, len);
        try_sums(&s, frame, len);

        static const unsigned types[] = {1, 4, 5, 0, 3, 0x81};
        uint32_t proto = rnd(2);
        unsigned start = 14 + rnd(4) * 4 + (rnd(2) ? 20 + rnd(11) * 4 : 40 + rnd(3) * 8);
        for (unsigned k = 0; k < sizeof types / sizeof *types; k++)
            for (unsigned at = rnd(16) ? 14 : start; at < 260; at += 2)
                if (!qn_gso_plan_vnet(&plan, s.iov, s.n, size, types[k], rnd(64) ? 1 + rnd(3000) : rnd(70000), at, proto ? 16 : 6))
                    vnet += (unsigned)run(&plan, &s, frame, size, 1);

        plan = (struct qn_gso_plan){
            .hdr_len = field(), .mss = rnd(16) ? (uint16_t)(1 + rnd(2000)) : field(), .ip_off = field(),
            .ip_version = (uint8_t)(rnd(32) ? rnd(2) * (4 + 2 * rnd(2)) : rnd(256)),
            .l4_proto = (uint8_t)(rnd(32) ? rnd(2) * (6 + 11 * rnd(2)) : rnd(256)), .l4_off = field(),
            .ip_sum = (uint8_t)rnd(2), .l4_sum = (uint8_t)rnd(2),
            .ip_sum_from = field(), .ip_sum_at = field(), .ip_sum_end = field(),
            .l4_sum_from = field(), .l4_sum_at = field(), .l4_sum_end = rnd(2) ? 0 : field(),
            .pseudo_len = rnd(2) ? 0 : rnd(0xffffffff),
        };
        free_plan += (unsigned)run(&plan, &s, frame, size, 0);

        CHECK(join(s.iov, s.n, after) == len && memcmp(after, frame, len) == 0);
        drop(&s);
    }
    printf("%lu frames, %lu segmented by header, %lu by random plan\n", rounds, vnet, free_plan);
    return 0;
}
