/* SPDX-License-Identifier: MIT
 * Writes capture files: pcap 2.4 with microseconds (draft-ietf-opsawg-pcap) and pcapng 1.0 with nanoseconds
 * (draft-ietf-opsawg-pcapng), both in host byte order, link type Ethernet.
 *
 * A burst is one writev of whole records, so a process that is killed leaves a file that is readable up to its last whole
 * record; nothing is kept back in memory. A file that cannot be written ends after its last whole record, and no more is
 * written. A FIFO whose reader is slow is not waited for: records are missed and counted, never torn.
 * Not reentrant: one writer at a time. */
#ifndef QN_PCAP_H
#define QN_PCAP_H
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
    QN_PCAP_NAME = 64,    /* bytes of an interface name and its NUL; longer ones are cut */
    QN_PCAP_SLOTS = 2,
    QN_PCAP_COMMENT = 60, /* bytes of a comment; longer ones are cut */
    QN_PCAP_IOV = 1000    /* elements of a record's longest array; records with more are missed */
};

struct qn_pcap_record {
    const struct iovec *iov;
    unsigned iovcnt;
    unsigned slot;       /* pcapng: 0..QN_PCAP_SLOTS-1, a slot that has a name */
    size_t size;         /* bytes of the frame; what lies beyond snaplen is not written */
    unsigned direction;  /* pcapng: 0 unknown, 1 inbound, 2 outbound */
    const char *comment; /* pcapng, or NULL */
};

struct qn_pcap {
    int fd;                    /* -1: closed */
    int kind;                  /* enum qn_fd_kind */
    int regular;
    int error;                 /* errno that ended it, 0: none */
    int ng;
    uint32_t snaplen;
    unsigned rotate_count;     /* finished files that are kept: path.1 is the newest */
    uint64_t rotate_size;      /* no file grows beyond it unless by its first record; 0: one file */
    uint64_t size;             /* bytes of whole records and headers in this file */
    uint64_t start;            /* ... of which headers */
    uint64_t frames, missed, files, writes;
    char names[QN_PCAP_SLOTS][QN_PCAP_NAME];
    uint32_t ids[QN_PCAP_SLOTS]; /* the interface that a slot is now */
    uint32_t interfaces;         /* in this file */
    uint8_t *batch;              /* where a burst is put together */
    uint8_t *rest;               /* FIFO: end of a record of which the beginning is written */
    size_t rest_at, rest_len;
    char path[PATH_MAX];
};

/* Creates or truncates `path` (mode 0644) and writes the header. rotate_size needs a regular file (-EINVAL). 0 or -errno;
 * -ENXIO: a FIFO without a reader. */
int qn_pcap_open(struct qn_pcap *p, const char *path, int ng, uint32_t snaplen, uint64_t rotate_size, unsigned rotate_count);

/* pcapng: from now on `slot` is an interface of this name. Nothing happens when it is already. 0, or -errno: has just ended. */
int qn_pcap_name(struct qn_pcap *p, unsigned slot, const char *name);

/* A burst of frames of one moment (nanoseconds since 1970). 0, or -errno when this call ended the capture; later calls count
 * what they miss and return 0. */
int qn_pcap_write(struct qn_pcap *p, int64_t ns, const struct qn_pcap_record *recs, unsigned n);

/* Idempotent. */
void qn_pcap_close(struct qn_pcap *p);
#endif
