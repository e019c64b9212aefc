/* What no implementation can save: a kick's descriptors read and written back, frames added up, frames copied to receivers. */
#include <stdint.h>
#include <string.h>

struct shape {
    uint64_t base, slot, slots;         /* source buffers: where the first is, how far apart, how many before they come again */
    uint64_t buffers, length, piece;    /* buffers a kick, bytes of each, bytes of a frame */
    uint64_t descriptors;               /* a buffer */
    uint64_t summed;
};

static uint64_t add_up(const uint8_t *p, uint64_t n)
{
    uint64_t sum = 0;
    uint32_t v;
    for (uint64_t i = 0; i + 4 <= n; i += 4) {
        memcpy(&v, p + i, 4);
        sum += v;
    }
    return sum;
}

/* Descriptors are at tx and rx; receiver c's buffers at dst + c * dst_step. */
uint64_t kick(uint8_t *mem, const struct shape *s, uint64_t tx, uint64_t receivers, uint64_t rx, uint64_t dst, uint64_t step)
{
    uint64_t sum = 0, frame = 0, word[2];
    for (uint64_t i = 0; i < s->buffers; i++) {
        const uint8_t *src = mem + s->base + i % s->slots * s->slot;
        for (uint64_t d = 0; d < s->descriptors; d++, tx += 16) {
            memcpy(word, mem + tx, 16);
            sum += word[0] ^ word[1];
            mem[tx + 12] |= 1;
        }
        if (s->summed)
            sum += add_up(src, s->length);
        for (uint64_t at = 0; receivers && at < s->length; at += s->piece, frame++) {
            uint64_t n = s->length - at < s->piece ? s->length - at : s->piece;
            for (uint64_t c = 0; c < receivers; c++) {
                uint8_t *desc = mem + rx + c * 0x200000 + frame * 16;
                memcpy(word, desc, 8);
                memcpy(mem + dst + c * step + frame * 2048, src + at, n);
                word[1] = n | word[0] << 63;
                memcpy(desc + 8, &word[1], 8);
            }
        }
    }
    return sum;
}
