/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "pcap.h"
#include "fdio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAGIC_US = 0xa1b2c3d4u, LINKTYPE_ETHERNET = 1 };
enum { SHB = 0x0a0d0d0a, BYTE_ORDER_MAGIC = 0x1a2b3c4d, IDB = 1, EPB = 6 };
enum { OPT_END = 0, OPT_COMMENT = 1, SHB_USERAPPL = 4, IF_NAME = 2, IF_TSRESOL = 9, EPB_FLAGS = 2 };
enum {
    IOVS = 1024, /* IOV_MAX of Linux */
    BURST = 64,
    COPY_MAX = 2048, /* shorter frames are copied: cheaper for the kernel than one more element each */
    HEAD_MAX = 28, TAIL_MAX = 3 + 8 + 4 + QN_PCAP_COMMENT + 4 + 4, /* padding, flags, comment, end of options, length */
    BLOCK_MAX = 128 /* SHB, or IDB with its name */
};

/* Bytes that are ours (block headers, short frames, padding, options) between the bytes of long frames. */
struct batch {
    struct iovec iov[IOVS];
    uint8_t *own;      /* qn_pcap.batch */
    size_t end[BURST]; /* of each record, from the start of the batch */
    unsigned iovcnt, n;
    size_t used, size;
};

static uint8_t *put16(uint8_t *at, unsigned v)
{
    uint16_t x = (uint16_t)v;
    memcpy(at, &x, 2);
    return at + 2;
}

static uint8_t *put32(uint8_t *at, uint32_t v)
{
    memcpy(at, &v, 4);
    return at + 4;
}

static size_t padding(size_t len)
{
    return -len & 3;
}

static uint8_t *put_option(uint8_t *at, unsigned code, const void *value, size_t len)
{
    at = put16(put16(at, code), (unsigned)len);
    memcpy(at, value, len);
    memset(at + len, 0, padding(len));
    return at + len + padding(len);
}

/* ------------------------------------------------------------------------------------------------------ file and errors */

static int stop(struct qn_pcap *p, int err)
{
    p->error = err;
    close(p->fd);
    p->fd = -1;
    return -err;
}

/* Write what is left of a record that a full FIFO tore. */
static ssize_t write_rest(struct qn_pcap *p)
{
    ssize_t n = 0;

    while (p->rest_len && n >= 0) {
        struct iovec iov = {p->rest + p->rest_at, p->rest_len};
        n = qn_writev(p->fd, p->kind, &iov, 1);
        p->writes++;
        if (n > 0) {
            p->rest_at += (size_t)n;
            p->rest_len -= (size_t)n;
        }
    }
    if (n >= 0) {
        free(p->rest);
        p->rest = NULL;
    }
    return n;
}

/* A block that is not a frame. -EAGAIN: a FIFO has no room, nothing was written; any other error ends the capture. */
static int put_block(struct qn_pcap *p, const uint8_t *block, size_t len)
{
    struct iovec iov = {(void *)block, len};
    ssize_t n = p->rest ? write_rest(p) : 0;

    if (n >= 0) {
        n = qn_writev(p->fd, p->kind, &iov, 1); /* whole or not at all: shorter than PIPE_BUF */
        p->writes++;
    }
    if (n == (ssize_t)len) {
        p->size += len;
        return 0;
    }
    if (n == -EAGAIN)
        return -EAGAIN;
    return stop(p, n < 0 ? (int)-n : ENOSPC);
}

static int put_interface(struct qn_pcap *p, unsigned slot)
{
    static const uint8_t nanoseconds = 9; /* 10^-9 */
    uint8_t block[BLOCK_MAX], *at;
    uint32_t len;
    int rc;

    at = put32(put16(put16(block + 8, LINKTYPE_ETHERNET), 0), p->snaplen);
    at = put_option(at, IF_NAME, p->names[slot], strlen(p->names[slot]));
    at = put_option(at, IF_TSRESOL, &nanoseconds, 1);
    at = put16(put16(at, OPT_END), 0);
    len = (uint32_t)(at + 4 - block);
    put32(put32(block, IDB), len);
    put32(at, len);
    p->ids[slot] = p->interfaces;
    rc = put_block(p, block, len);
    if (rc == 0)
        p->interfaces++;
    else
        p->names[slot][0] = 0; /* its records are missed until it is there */
    return rc;
}

static int put_header(struct qn_pcap *p)
{
    uint8_t block[BLOCK_MAX], *at;
    uint32_t len;
    int rc;

    p->size = 0;
    p->interfaces = 0;
    if (p->ng) {
        at = put16(put16(put32(block + 8, BYTE_ORDER_MAGIC), 1), 0);
        memset(at, 0xff, 8); /* section length: not known */
        at = put_option(at + 8, SHB_USERAPPL, "qnet", 4);
        at = put16(put16(at, OPT_END), 0);
        len = (uint32_t)(at + 4 - block);
        put32(put32(block, SHB), len);
        put32(at, len);
    } else {
        at = put16(put16(put32(block, MAGIC_US), 2), 4);
        put32(put32(put32(put32(at, 0), 0), p->snaplen), LINKTYPE_ETHERNET);
        len = 24;
    }
    rc = put_block(p, block, len);
    for (unsigned slot = 0; rc == 0 && slot < QN_PCAP_SLOTS; slot++)
        if (p->names[slot][0])
            rc = put_interface(p, slot);
    p->start = p->size;
    return rc == -EAGAIN ? stop(p, EAGAIN) : rc;
}

static int open_file(struct qn_pcap *p)
{
    /* Not waited for: neither a FIFO's reader when it is opened nor its room when it is written. */
    p->fd = open(p->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0644);
    if (p->fd < 0)
        return -errno;
    p->regular = ftruncate(p->fd, 0) == 0; /* it is empty already; devices, FIFOs and terminals refuse */
    p->kind = qn_fd_kind(p->fd);
    p->files++;
    return 0;
}

int qn_pcap_open(struct qn_pcap *p, const char *path, int ng, uint32_t snaplen, uint64_t rotate_size, unsigned rotate_count)
{
    int rc;

    memset(p, 0, sizeof *p);
    p->fd = -1;
    p->ng = ng;
    p->snaplen = snaplen;
    p->rotate_size = rotate_size;
    p->rotate_count = rotate_count;
    if (strlen(path) >= sizeof p->path)
        return -ENAMETOOLONG;
    strcpy(p->path, path);
    p->batch = malloc(BURST * (HEAD_MAX + COPY_MAX + TAIL_MAX));
    if (!p->batch)
        return -ENOMEM;
    rc = open_file(p);
    if (rc < 0)
        return rc;
    if (rotate_size && !p->regular)
        return stop(p, EINVAL);
    return put_header(p);
}

void qn_pcap_close(struct qn_pcap *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
    free(p->rest);
    free(p->batch);
    p->rest = p->batch = NULL;
}

static int rename_number(const struct qn_pcap *p, unsigned from)
{
    char a[PATH_MAX + 16], b[PATH_MAX + 16];

    snprintf(a, sizeof a, from ? "%s.%u" : "%s", p->path, from);
    snprintf(b, sizeof b, "%s.%u", p->path, from + 1);
    return rename(a, b) < 0 ? -errno : 0;
}

/* path -> path.1 -> path.2 ...; the one that would become path.(rotate_count + 1) is replaced. */
static int rotate(struct qn_pcap *p)
{
    int old = p->fd, rc;

    for (unsigned i = p->rotate_count - 1; i >= 1; i--)
        rename_number(p, i); /* those that are not there yet are not missed */
    rc = rename_number(p, 0);
    if (rc < 0)
        return stop(p, -rc);
    rc = open_file(p);
    close(old);
    if (rc < 0) {
        p->error = -rc;
        return rc;
    }
    return put_header(p);
}

int qn_pcap_name(struct qn_pcap *p, unsigned slot, const char *name)
{
    if (!p->ng || strncmp(p->names[slot], name, QN_PCAP_NAME - 1) == 0)
        return 0;
    strncpy(p->names[slot], name, QN_PCAP_NAME - 1);
    return p->fd < 0 ? 0 : put_interface(p, slot);
}

/* --------------------------------------------------------------------------------------------------------------- records */

static void add_own(struct batch *b, size_t len)
{
    uint8_t *at = b->own + b->used;
    struct iovec *last = b->iovcnt ? &b->iov[b->iovcnt - 1] : NULL;

    if (last && (uint8_t *)last->iov_base + last->iov_len == at) /* one record's end and the next one's beginning */
        last->iov_len += len;
    else
        b->iov[b->iovcnt++] = (struct iovec){at, len};
    b->used += len;
    b->size += len;
}

/* The frame's first `want` bytes; how many there were. */
static uint32_t add_frame(struct batch *b, const struct iovec *iov, unsigned iovcnt, size_t want)
{
    size_t left = want;
    uint8_t *to = b->own + b->used;

    for (unsigned i = 0; i < iovcnt && left; i++) {
        size_t len = iov[i].iov_len < left ? iov[i].iov_len : left;
        if (len == 0)
            continue;
        if (want <= COPY_MAX)
            memcpy(to + want - left, iov[i].iov_base, len);
        else
            b->iov[b->iovcnt++] = (struct iovec){iov[i].iov_base, len};
        left -= len;
    }
    if (want <= COPY_MAX)
        add_own(b, want - left);
    else
        b->size += want - left;
    return (uint32_t)(want - left);
}

static void add_record(struct qn_pcap *p, struct batch *b, int64_t ns, const struct qn_pcap_record *r)
{
    size_t want = r->size < p->snaplen ? r->size : p->snaplen;
    size_t before = b->size, len;
    uint8_t *head = b->own + b->used, *tail, *at;
    uint32_t caplen;

    if (!p->ng) {
        add_own(b, 16);
        caplen = add_frame(b, r->iov, r->iovcnt, want);
        at = put32(put32(head, (uint32_t)(ns / 1000000000)), (uint32_t)(ns % 1000000000 / 1000));
        put32(put32(at, caplen), (uint32_t)r->size);
        b->end[b->n++] = b->size;
        return;
    }
    add_own(b, HEAD_MAX);
    caplen = add_frame(b, r->iov, r->iovcnt, want);
    tail = at = b->own + b->used;
    memset(at, 0, padding(caplen));
    at += padding(caplen);
    if (r->direction)
        at = put_option(at, EPB_FLAGS, &(uint32_t){r->direction}, 4);
    if (r->comment)
        at = put_option(at, OPT_COMMENT, r->comment, strnlen(r->comment, QN_PCAP_COMMENT));
    if (r->direction || r->comment)
        at = put16(put16(at, OPT_END), 0);
    at += 4;
    add_own(b, (size_t)(at - tail));
    len = b->size - before;
    put32(at - 4, (uint32_t)len);
    at = put32(put32(put32(head, EPB), (uint32_t)len), p->ids[r->slot]);
    at = put32(put32(at, (uint32_t)((uint64_t)ns >> 32)), (uint32_t)ns);
    put32(put32(at, caplen), (uint32_t)r->size);
    b->end[b->n++] = b->size;
}

/* Where the record begins or ends that byte `done` of the batch belongs to; *whole: records before it. */
static size_t record_of(const struct batch *b, size_t done, unsigned *whole)
{
    unsigned k = 0;

    while (k < b->n && b->end[k] <= done)
        k++;
    *whole = k;
    return k ? b->end[k - 1] : 0;
}

/* The batch from byte `from` on, at most `max` bytes. */
static unsigned slice(const struct batch *b, size_t from, size_t max, struct iovec *out)
{
    unsigned n = 0;

    for (unsigned i = 0; i < b->iovcnt && max; i++) {
        size_t len = b->iov[i].iov_len;
        if (from >= len) {
            from -= len;
            continue;
        }
        len = len - from < max ? len - from : max;
        out[n++] = (struct iovec){(uint8_t *)b->iov[i].iov_base + from, len};
        max -= len;
        from = 0;
    }
    return n;
}

/* A FIFO took `done` bytes. The end of a record that is torn there is kept for later; those behind it are missed. */
static int keep_rest(struct qn_pcap *p, const struct batch *b, size_t done)
{
    struct iovec part[IOVS];
    unsigned whole, n;
    size_t begin = record_of(b, done, &whole);

    p->frames += whole;
    p->size += begin;
    p->missed += b->n - whole;
    if (done == begin)
        return 0;
    p->rest_at = 0;
    p->rest_len = b->end[whole] - done;
    p->rest = malloc(p->rest_len);
    if (!p->rest)
        return stop(p, ENOMEM);
    n = slice(b, done, p->rest_len, part);
    for (size_t i = 0, at = 0; i < n; at += part[i++].iov_len)
        memcpy(p->rest + at, part[i].iov_base, part[i].iov_len);
    p->frames++;
    p->missed--;
    p->size += b->end[whole] - begin;
    return 0;
}

/* The disk took `done` bytes and will take no more: end the file after the last whole record. */
static int cut_back(struct qn_pcap *p, const struct batch *b, size_t done, int err)
{
    unsigned whole;

    p->size += record_of(b, done, &whole);
    p->frames += whole;
    p->missed += b->n - whole;
    if (p->regular && ftruncate(p->fd, (off_t)p->size) < 0)
        err = errno;
    return stop(p, err);
}

static int write_batch(struct qn_pcap *p, struct batch *b)
{
    struct iovec part[IOVS];
    ssize_t n = p->rest ? write_rest(p) : 0;
    size_t done = 0;
    int rc = 0;

    while (n >= 0 && done < b->size) {
        if (done == 0)
            n = qn_writev(p->fd, p->kind, b->iov, b->iovcnt);
        else
            n = qn_writev(p->fd, p->kind, part, slice(b, done, b->size - done, part));
        p->writes++;
        if (n == 0)
            n = -ENOSPC;
        if (n > 0)
            done += (size_t)n;
    }
    if (n >= 0) {
        p->frames += b->n;
        p->size += b->size;
    } else if (n == -EAGAIN && !p->regular) {
        rc = keep_rest(p, b, done);
    } else {
        rc = cut_back(p, b, done, (int)-n);
    }
    b->n = b->iovcnt = 0;
    b->used = b->size = 0;
    return rc;
}

static size_t record_size(const struct qn_pcap *p, const struct qn_pcap_record *r)
{
    size_t caplen = r->size < p->snaplen ? r->size : p->snaplen, len;

    if (!p->ng)
        return 16 + caplen;
    len = HEAD_MAX + caplen + padding(caplen) + 4;
    if (r->direction)
        len += 8;
    if (r->comment)
        len += 4 + ((strnlen(r->comment, QN_PCAP_COMMENT) + 3) & ~(size_t)3);
    return len + (r->direction || r->comment ? 4 : 0);
}

int qn_pcap_write(struct qn_pcap *p, int64_t ns, const struct qn_pcap_record *recs, unsigned n)
{
    struct batch b;
    int rc = 0;

    b.own = p->batch;
    b.n = b.iovcnt = 0;
    b.used = b.size = 0;
    for (unsigned i = 0; i < n; i++) {
        const struct qn_pcap_record *r = &recs[i];
        if (p->fd < 0 || r->iovcnt > QN_PCAP_IOV || (p->ng && !p->names[r->slot][0])) {
            p->missed++;
            continue;
        }
        if (b.n == BURST || b.iovcnt + r->iovcnt + 2 > IOVS)
            rc = write_batch(p, &b);
        if (rc == 0 && p->rotate_size && p->size + b.size + record_size(p, r) > p->rotate_size) {
            if (b.n)
                rc = write_batch(p, &b);
            if (rc == 0 && p->size > p->start)
                rc = rotate(p);
        }
        if (rc < 0) {
            p->missed += n - i;
            return rc;
        }
        add_record(p, &b, ns, r);
    }
    return b.n ? write_batch(p, &b) : rc;
}
