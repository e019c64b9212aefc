/* SPDX-License-Identifier: MIT
 * IPv4 reassembly (RFC 791, 3.2) for what a guest sends. Bounded: QN_REASS_SLOTS datagrams at a time, the oldest gives way.
 *
 * A fragment that overlaps another one of its datagram, reaches past 65535 bytes or past the end takes the whole datagram
 * with it: nothing honest does that, and telling the readings apart has been an attack (RFC 1858, RFC 5722). */
#ifndef QN_IPREASS_H
#define QN_IPREASS_H

#include <stdint.h>

enum {
    QN_REASS_SLOTS = 16,
    QN_REASS_MS = 30000         /* a datagram that is not whole by then is forgotten (RFC 791: 15 s and more) */
};

struct qn_reass;

struct qn_reass *qn_reass_new(void);            /* NULL: no memory */
void qn_reass_free(struct qn_reass *r);         /* NULL is fine */

/* frame: Ethernet header and an IPv4 packet that is a fragment; header length and total length have been checked.
 * 1: the datagram is whole; *out is a frame of *out_size bytes with it, the caller's to change, valid until the next call.
 * 0: kept. -EINVAL: refused. -ENOMEM. *lost: fragments kept earlier that are forgotten now. */
int qn_reass_add(struct qn_reass *r, const uint8_t *frame, int64_t now_ms, uint8_t **out, uint32_t *out_size,
                 uint32_t *lost);

#endif
