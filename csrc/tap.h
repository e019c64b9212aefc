/* SPDX-License-Identifier: MIT
 * The ioctls of a tap (linux/if_tun.h): of /dev/net/tun and, where they make sense there, of a macvtap's /dev/tapN.
 * All return 0 or more, or -errno. */
#ifndef QN_TAP_H
#define QN_TAP_H

#define QN_TAP_NAME 16 /* IFNAMSIZ: bytes of an interface's name with its end */

/* What the kernel can do, and what a tap was opened with. */
#define QN_TAP_ETHERNET 1 /* frames, not IP packets */
#define QN_TAP_VNET_HDR 2 /* a virtio_net_hdr before each frame */
#define QN_TAP_QUEUES 4   /* several descriptors, each a queue of one interface */

/* Offloads: what a tap may be given and may give. */
#define QN_TAP_CSUM 1
#define QN_TAP_TSO4 2
#define QN_TAP_TSO6 4
#define QN_TAP_ECN 8
#define QN_TAP_USO 16

/* QN_TAP_VNET_HDR and QN_TAP_QUEUES as far as the kernel has them. `fd` need not be attached. */
int qn_tap_features(int fd);

/* TUNSETIFF, always with frames: `flags` may add the other two. `name` may have a %d and becomes the interface's own. */
int qn_tap_attach(int fd, char name[QN_TAP_NAME], int flags);

/* TUNGETIFF: QN_TAP_* flags and the name. -ENOTTY: no tap. It does not tell whether IFF_NO_PI was given. */
int qn_tap_query(int fd, char name[QN_TAP_NAME]);

/* Length of the header before each frame, 10 at least. */
int qn_tap_set_header(int fd, int len);

/* Ask for as many offloads as this kernel knows; the answer is which. The header is in this machine's byte order from now on. */
int qn_tap_offload(int fd);

/* Bytes that may be on their way into the host before a write is refused. */
int qn_tap_set_sndbuf(int fd, int bytes);

/* Let a queue of several take part in the traffic, or not. */
int qn_tap_set_queue(int fd, int on);
#endif
