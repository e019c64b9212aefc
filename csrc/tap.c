/* SPDX-License-Identifier: MIT */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* struct ifreq */
#endif
#include "tap.h"

#include <errno.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>

#include <linux/if_tun.h>

#ifndef TUN_F_USO4 /* headers before Linux 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef TUNSETVNETBE /* before 4.1 */
#define TUNSETVNETBE _IOW('T', 222, int)
#endif

_Static_assert(QN_TAP_NAME == IFNAMSIZ, "an interface's name");

static int result(int rc)
{
    return rc < 0 ? -errno : 0;
}

static int flags_of(unsigned kernel)
{
    int flags = 0;

    if (kernel & IFF_TAP)
        flags |= QN_TAP_ETHERNET;
    if (kernel & IFF_VNET_HDR)
        flags |= QN_TAP_VNET_HDR;
    if (kernel & IFF_MULTI_QUEUE)
        flags |= QN_TAP_QUEUES;
    return flags;
}

int qn_tap_features(int fd)
{
    unsigned features = 0;

    if (ioctl(fd, TUNGETFEATURES, &features) < 0)
        return -errno;
    return flags_of(features);
}

int qn_tap_attach(int fd, char name[QN_TAP_NAME], int flags)
{
    struct ifreq ifr;

    memset(&ifr, 0, sizeof ifr);
    memcpy(ifr.ifr_name, name, IFNAMSIZ - 1);
    ifr.ifr_flags = IFF_TAP | IFF_NO_PI;
    if (flags & QN_TAP_VNET_HDR)
        ifr.ifr_flags |= IFF_VNET_HDR;
    if (flags & QN_TAP_QUEUES)
        ifr.ifr_flags |= IFF_MULTI_QUEUE;
    if (ioctl(fd, TUNSETIFF, &ifr) < 0)
        return -errno;
    return qn_tap_query(fd, name); /* a macvtap does not write the name back */
}

int qn_tap_query(int fd, char name[QN_TAP_NAME])
{
    struct ifreq ifr;

    memset(&ifr, 0, sizeof ifr);
    if (ioctl(fd, TUNGETIFF, &ifr) < 0)
        return -errno;
    memcpy(name, ifr.ifr_name, IFNAMSIZ);
    name[IFNAMSIZ - 1] = 0;
    return flags_of((unsigned short)ifr.ifr_flags);
}

int qn_tap_set_header(int fd, int len)
{
    return result(ioctl(fd, TUNSETVNETHDRSZ, &len));
}

int qn_tap_offload(int fd)
{
    /* Each kernel takes all it knows or nothing: USO is since 6.2. */
    static const unsigned char wish[] = {
        QN_TAP_CSUM | QN_TAP_TSO4 | QN_TAP_TSO6 | QN_TAP_ECN | QN_TAP_USO,
        QN_TAP_CSUM | QN_TAP_TSO4 | QN_TAP_TSO6 | QN_TAP_ECN,
        QN_TAP_CSUM | QN_TAP_TSO4 | QN_TAP_TSO6,
        QN_TAP_CSUM,
    };
    int native = 0;

    (void)ioctl(fd, TUNSETVNETBE, &native); /* only kernels that were built for it know it */
    for (unsigned i = 0; i < sizeof wish; i++) {
        unsigned long bits = wish[i] & QN_TAP_CSUM ? TUN_F_CSUM : 0;
        bits |= wish[i] & QN_TAP_TSO4 ? TUN_F_TSO4 : 0;
        bits |= wish[i] & QN_TAP_TSO6 ? TUN_F_TSO6 : 0;
        bits |= wish[i] & QN_TAP_ECN ? TUN_F_TSO_ECN : 0;
        bits |= wish[i] & QN_TAP_USO ? TUN_F_USO4 | TUN_F_USO6 : 0;
        if (ioctl(fd, TUNSETOFFLOAD, bits) == 0)
            return wish[i];
        if (errno != EINVAL)
            return -errno;
    }
    return 0;
}

int qn_tap_set_sndbuf(int fd, int bytes)
{
    return result(ioctl(fd, TUNSETSNDBUF, &bytes));
}

int qn_tap_set_queue(int fd, int on)
{
    struct ifreq ifr;

    memset(&ifr, 0, sizeof ifr);
    ifr.ifr_flags = on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE;
    return result(ioctl(fd, TUNSETQUEUE, &ifr));
}
