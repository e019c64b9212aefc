/* What no implementation can save: a kick's descriptors read and written back, frames added up, frames copied to receivers. */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

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

/* The system calls of a tap: one writev a frame, its buffers in pieces, behind a virtio_net_hdr. Frames that were refused. */
uint64_t write_frames(int fd, const uint8_t *mem, const struct shape *s, void *header, uint64_t first, uint64_t piece)
{
    uint64_t refused = 0;
    for (uint64_t i = 0; i < s->buffers; i++) {
        uint8_t *src = (uint8_t *)mem + s->base + i % s->slots * s->slot;
        struct iovec iov[64];
        uint64_t at = 0;
        int n = 1;
        iov[0] = (struct iovec){header, 10};
        for (uint64_t len = first; at < s->length && n < 64; at += len, len = piece) {
            len = s->length - at < len ? s->length - at : len;
            iov[n++] = (struct iovec){src + at, len};
        }
        refused += writev(fd, iov, n) != (ssize_t)(10 + s->length);
    }
    return refused;
}

/* One read a frame until there is none; how many there were. Each is then copied, in parts of `piece` bytes behind `headers` bytes of
 * their own if it is longer, to the next of `slots` buffers of 2 KiB. */
uint64_t read_frames(int fd, uint8_t *to, uint64_t size, uint8_t *dst, uint64_t slots, uint64_t piece, uint64_t headers)
{
    uint64_t n = 0, slot = 0;
    ssize_t got;
    while ((got = read(fd, to, size)) > 0) {
        uint64_t len = (uint64_t)got - 10, at = len > 2048 ? headers : 0;
        do {
            uint64_t part = len - at < piece ? len - at : piece;
            uint8_t *out = dst + slot++ % slots * 2048;
            if (len > 2048) {
                memcpy(out, to + 10, headers);
                out += headers;
            }
            memcpy(out, to + 10 + at, part);
            at += part;
        } while (at < len);
        n++;
    }
    return n;
}

/* n messages of `len` bytes, 64 a call; how many left. */
uint64_t send_messages(int fd, char *from, uint64_t len, uint64_t n)
{
    uint64_t done = 0;
    while (done < n) {
        struct iovec iov[64];
        struct mmsghdr msg[64];
        unsigned m = n - done < 64 ? (unsigned)(n - done) : 64;
        memset(msg, 0, sizeof msg);
        for (unsigned i = 0; i < m; i++) {
            iov[i] = (struct iovec){from + (done + i) % 2048 * 2048, len};
            msg[i].msg_hdr.msg_iov = &iov[i];
            msg[i].msg_hdr.msg_iovlen = 1;
        }
        int k = sendmmsg(fd, msg, m, MSG_DONTWAIT);
        if (k <= 0)
            break;
        done += (uint64_t)k;
    }
    return done;
}

/* The messages that wait, 32 a call with room for the longest each, each then copied to the next of `slots` buffers of 2 KiB; how many. */
uint64_t receive_messages(int fd, char *to, uint64_t n, char *dst, uint64_t slots)
{
    uint64_t done = 0;
    while (done < n) {
        struct iovec iov[32];
        struct mmsghdr msg[32];
        memset(msg, 0, sizeof msg);
        for (unsigned i = 0; i < 32; i++) {
            iov[i] = (struct iovec){to + i * 69632, 69632};
            msg[i].msg_hdr.msg_iov = &iov[i];
            msg[i].msg_hdr.msg_iovlen = 1;
        }
        int k = recvmmsg(fd, msg, 32, MSG_DONTWAIT, NULL);
        if (k <= 0)
            break;
        for (int i = 0; i < k; i++, done++)
            memcpy(dst + done % slots * 2048, iov[i].iov_base, msg[i].msg_len);
    }
    return done;
}

/* n bytes of a stream, 256 KiB a call, each then copied in pieces to the next of `slots` buffers of 2 KiB; how many. */
uint64_t receive_stream(int fd, char *to, uint64_t n, char *dst, uint64_t slots, uint64_t piece)
{
    uint64_t done = 0, slot = 0;
    ssize_t got;
    while (done < n && (got = read(fd, to, 262144)) > 0) {
        for (uint64_t at = 0; at < (uint64_t)got; at += piece)
            memcpy(dst + slot++ % slots * 2048, to + at, (uint64_t)got - at < piece ? (uint64_t)got - at : piece);
        done += (uint64_t)got;
    }
    return done;
}
