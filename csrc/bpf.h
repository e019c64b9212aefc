/* SPDX-License-Identifier: MIT
 * Classic BPF over a frame in pieces, by the kernel's description of it (Documentation/networking/filter.rst, linux/filter.h).
 * Programs and frames are anybody's: a program that passed qn_bpf_check reads nothing outside the frame and its own 16 words,
 * and runs at most as many instructions as it has. */
#ifndef QN_BPF_H
#define QN_BPF_H
#include <linux/filter.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define QN_BPF_MAX 4096 /* instructions of the longest program */

/* -1 when the program may be run, else the number of the first instruction that is wrong, n when it has no end (or n is 0 or
 * too large): unknown opcode, jump out of the program, division by a constant 0, shift by 32 or more, no such word of
 * memory or one that may not have been stored to, a last instruction that does not return. What the kernel refuses is refused;
 * its ancillary loads (SKF_AD_OFF) are too, as there is no socket buffer here. */
int qn_bpf_check(const struct sock_filter *prog, unsigned n);

/* Bytes of the frame to keep; 0: it does not match. A load outside the frame, or a division by zero, ends with 0. */
uint32_t qn_bpf_run(const struct sock_filter *prog, const struct iovec *iov, unsigned iovcnt, uint32_t size);
#endif
