/* SPDX-License-Identifier: MIT */
#include "ipreass.h"
#include "csum.h"
#include "parse.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    ETH = 14,
    MAX_HDR = 60,
    MAX_IP = 65535,
    FRONT = ETH + MAX_HDR,      /* the payload's place: whatever the header's length, it goes right before it */
    BLOCKS = (MAX_IP + 7) / 8,
    MF = 0x2000,
    OFFSET = 0x1fff
};

struct slot {
    uint8_t *buf;               /* FRONT + MAX_IP bytes; NULL: free */
    int64_t born;
    uint64_t order;             /* of the first fragment's arrival */
    uint8_t key[10];            /* source, destination, identification */
    uint8_t proto;
    uint8_t hdr[FRONT];         /* Ethernet and IP header of the first fragment */
    uint32_t hdr_len;           /* of the IP header, 0: not seen */
    uint32_t end;               /* payload bytes, 0: last fragment not seen */
    uint32_t top;               /* payload bytes up to the end of the farthest fragment */
    uint32_t have;              /* payload bytes seen */
    uint32_t count;             /* fragments */
    uint64_t seen[(BLOCKS + 63) / 64];
};

struct qn_reass {
    uint8_t *done;              /* buffer of the datagram handed out last */
    uint64_t order;
    struct slot slots[QN_REASS_SLOTS];
};

struct qn_reass *qn_reass_new(void)
{
    return calloc(1, sizeof(struct qn_reass));
}

void qn_reass_free(struct qn_reass *r)
{
    int i;

    if (!r)
        return;
    for (i = 0; i < QN_REASS_SLOTS; i++)
        free(r->slots[i].buf);
    free(r->done);
    free(r);
}

static uint32_t forget(struct slot *s)
{
    uint32_t count = s->count;

    free(s->buf);
    memset(s, 0, sizeof *s);
    return count;
}

/* The slot of this datagram, or a fresh one; expired ones are emptied on the way. NULL: no memory. */
static struct slot *find(struct qn_reass *r, const uint8_t *ip, int64_t now, uint32_t *lost)
{
    struct slot *oldest = &r->slots[0];
    struct slot *vacant = NULL;
    uint8_t key[10];
    int i;

    memcpy(key, ip + 12, 8);
    memcpy(key + 8, ip + 4, 2);
    for (i = 0; i < QN_REASS_SLOTS; i++) {
        struct slot *s = &r->slots[i];

        if (s->buf && now - s->born >= QN_REASS_MS)
            *lost += forget(s);
        if (!s->buf)
            vacant = s;
        else if (s->proto == ip[9] && memcmp(s->key, key, sizeof key) == 0)
            return s;
        else if (s->order < oldest->order || !oldest->buf)
            oldest = s;
    }
    if (!vacant) {
        *lost += forget(oldest);
        vacant = oldest;
    }
    vacant->buf = malloc(FRONT + MAX_IP);
    if (!vacant->buf)
        return NULL;
    vacant->born = now;
    vacant->order = r->order++;
    vacant->proto = ip[9];
    memcpy(vacant->key, key, sizeof key);
    return vacant;
}

/* Mark the payload bytes [from, from + len) as seen; from is a multiple of 8. 0: some were. */
static int mark(struct slot *s, uint32_t from, uint32_t len)
{
    uint32_t b;
    uint32_t last = (from + len + 7) / 8;

    for (b = from / 8; b < last; b++)
        if (s->seen[b / 64] >> (b % 64) & 1)
            return 0;
    for (b = from / 8; b < last; b++)
        s->seen[b / 64] |= (uint64_t)1 << (b % 64);
    return 1;
}

static void finish(struct qn_reass *r, struct slot *s, uint8_t **out, uint32_t *size)
{
    uint8_t *frame = s->buf + FRONT - s->hdr_len - ETH;
    uint8_t *ip = frame + ETH;
    uint32_t total = s->hdr_len + s->end;
    uint16_t sum;

    memcpy(frame, s->hdr, ETH + s->hdr_len);
    ip[2] = (uint8_t)(total >> 8);
    ip[3] = (uint8_t)total;
    memset(ip + 6, 0, 2);
    memset(ip + 10, 0, 2);
    sum = (uint16_t)~qn_csum_fold(qn_csum(ip, s->hdr_len, 0));
    memcpy(ip + 10, &sum, 2);
    free(r->done);
    r->done = s->buf;
    s->buf = NULL;
    *out = frame;
    *size = ETH + total;
    memset(s, 0, sizeof *s);
}

int qn_reass_add(struct qn_reass *r, const uint8_t *frame, int64_t now_ms, uint8_t **out, uint32_t *out_size,
                 uint32_t *lost)
{
    const uint8_t *ip = frame + ETH;
    uint32_t hlen = 4 * (ip[0] & 0xf);
    uint32_t len = qn_be16(ip + 2) - hlen;
    uint32_t offset = 8 * (qn_be16(ip + 6) & OFFSET);
    int more = (qn_be16(ip + 6) & MF) != 0;
    struct slot *s;

    *lost = 0;
    if (len == 0 || (more && len % 8) || hlen + offset + len > MAX_IP)
        return -EINVAL;
    s = find(r, ip, now_ms, lost);
    if (!s)
        return -ENOMEM;
    if (!mark(s, offset, len) || (s->end && (!more || offset + len > s->end)) || (!more && s->top > offset + len) ||
        (offset == 0 && s->top + hlen > MAX_IP) || (s->hdr_len && s->hdr_len + offset + len > MAX_IP)) {
        *lost += forget(s);
        return -EINVAL;
    }
    memcpy(s->buf + FRONT + offset, ip + hlen, len);
    s->have += len;
    s->count++;
    if (offset + len > s->top)
        s->top = offset + len;
    if (!more)
        s->end = offset + len;
    if (offset == 0) {
        s->hdr_len = hlen;
        memcpy(s->hdr, frame, ETH + hlen);
    }
    if (!s->end || !s->hdr_len || s->have != s->end)
        return 0;
    finish(r, s, out, out_size);
    return 1;
}
