"""AF_XDP sockets: frames through rings shared with the kernel, in a memory (UMEM) of the client's own.

af_xdp.rst of the kernel's documentation is the reference. Half of the UMEM's frames are for receiving: they are in the fill ring, in the
rx ring, or here until the peer has consumed what is in them. The others are for sending: free, or in the kernel's hands from the
tx ring until they come back in the completion ring.
"""
cimport cython
from libc.errno cimport EAGAIN, EINTR, ENETDOWN, ENXIO, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close

from qnet._context cimport context_enter, context_leave
from qnet._client cimport NetClient
from qnet._eth cimport ETH_HLEN
from qnet._fastpath cimport (DROP_EMPTY, DROP_IO, DROP_LINK_DOWN, DROP_MALFORMED, NET_BURST, NetClientOps, NetClientState, Packet,
                             net_drop, net_flush, net_send, net_set_link)
from qnet._iov cimport iov_gather
from qnet._loop cimport LOOP_IN, LOOP_OUT, Loop, watch_add, watch_init, watch_remove

import fcntl

from qnet.errors import check

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    int socket(int, int, int)
    int bind(int, const sockaddr *, unsigned)
    int setsockopt(int, int, int, const void *, unsigned)
    ssize_t recv(int, void *, size_t, int)
    ssize_t sendto(int, const void *, size_t, int, const void *, unsigned)
    int SOCK_RAW, SOCK_CLOEXEC, SOCK_NONBLOCK, MSG_DONTWAIT, MSG_TRUNC

cdef extern from "<unistd.h>" nogil:
    long syscall(long, ...)

cdef enum:
    BATCHES = 4                     # of one wake-up
    EDGE = 0x80000000               # EPOLLET
    EVENT_READS = 16                # messages of one wake-up


# ------------------------------------------------------------------------------------------------------------------ receiving

cdef void fill_publish(XskState *s) noexcept nogil:
    qn_store_release32(s.fill.producer, s.fill.next)
    if s.fill.flags[0] & XDP_RING_NEED_WAKEUP:
        s.nc.stats.syscalls += 1
        recv(s.fd, NULL, 0, MSG_DONTWAIT)


cdef void xsk_push(XskState *s) noexcept nogil:
    """Send what was received while the core takes it. Entered again by resume, only the outer call goes on."""
    cdef uint32_t first = s.done
    cdef uint32_t i
    if s.sending:
        s.again = True
        return
    s.sending = True
    while s.done < s.have:
        s.again = False
        s.done += net_send(s.nc, &s.pkts[s.done], s.have - s.done)
        if s.done < s.have and not s.again:
            break
    s.sending = False
    if s.fd < 0 or first == s.done:
        return
    for i in range(first, s.done):
        fill_put(s, <uint64_t>(<uint8_t *>s.iov[i].iov_base - s.umem))
    fill_publish(s)


cdef void xsk_read(XskState *s) noexcept nogil:
    """Take one burst from the rx ring, into pkts. What is in them stays where it is."""
    cdef uint32_t n = qn_load_acquire32(s.rx.producer) - s.rx.next
    cdef Packet *p = &s.pkts[0]
    cdef xdp_desc *d
    cdef uint64_t addr
    cdef uint32_t size
    cdef bint bad = False
    s.done = s.have = 0
    if n > NET_BURST:
        n = NET_BURST
    for _i in range(n):
        d = &(<xdp_desc *>s.rx.entries)[s.rx.next & (RING - 1)]
        s.rx.next += 1
        addr = d.addr
        size = d.len
        memset(p, 0, sizeof(Packet))
        p.size = size
        if addr >= RX_SIZE or (addr & (FRAME_SIZE - 1)) + size > FRAME_SIZE or size == 0:
            net_drop(s.nc, p, 1, True, DROP_MALFORMED if size else DROP_EMPTY)
            if addr < RX_SIZE:
                fill_put(s, addr)
                bad = True
            continue
        s.iov[s.have].iov_base = s.umem + addr
        s.iov[s.have].iov_len = size
        p.iov = &s.iov[s.have]
        p.iovcnt = 1
        s.have += 1
        p += 1
    if n:
        qn_store_release32(s.rx.consumer, s.rx.next)
    if bad:
        fill_publish(s)


# -------------------------------------------------------------------------------------------------------------------- sending

cdef bint kick(XskState *s, bint anyway) noexcept nogil:
    """Make the kernel look at the tx ring, again as long as it gets on: a call handles a few frames. `anyway`: though the ring is empty.
    False: the interface is gone."""
    cdef uint32_t before
    cdef ssize_t rc
    s.down = False
    while anyway or (tx_pending(s) and s.tx.flags[0] & XDP_RING_NEED_WAKEUP):
        anyway = False
        before = qn_load_acquire32(s.tx.consumer)
        s.nc.stats.syscalls += 1
        rc = sendto(s.fd, NULL, 0, MSG_DONTWAIT, NULL, 0)
        if rc < 0 and errno in (ENETDOWN, ENXIO):
            s.down = True
            return errno == ENETDOWN
        if not (rc < 0 and errno == EINTR) and qn_load_acquire32(s.tx.consumer) == before:
            break
    return True


cdef void xsk_poll(XskState *s) noexcept nogil:
    """Wait for what there is a use for. The socket counts as writable while its tx ring is half empty, also when the frames in it are
    with the device: so wait for the edge, which each frame that comes back makes."""
    cdef int rc = 0
    if s.in_ready or s.sending or s.fd < 0 or s.gone:
        return
    if s.done < s.have:
        watch_remove(&s.in_watch)
    elif s.in_watch.fd < 0:
        rc = watch_add(&s.in_watch, s.fd, LOOP_IN)
    if not (s.want_out or tx_pending(s)):
        watch_remove(&s.out_watch)
    elif s.out_watch.fd < 0 and rc >= 0:
        rc = watch_add(&s.out_watch, s.outfd, LOOP_OUT | <uint32_t>EDGE)
    if rc < 0:
        xsk_gone(s)


cdef void xsk_gone(XskState *s) noexcept nogil:
    """The interface is gone for good: the link goes down, and nobody waits for anything."""
    s.gone = True
    watch_remove(&s.in_watch)
    watch_remove(&s.out_watch)
    watch_remove(&s.event_watch)
    s.want_out = False
    if not s.sending and s.done < s.have:
        net_drop(s.nc, &s.pkts[s.done], s.have - s.done, True, DROP_LINK_DOWN)
        s.done = s.have = 0
    net_set_link(s.nc, False)


cdef void make_room(XskState *s, bint anyway) noexcept nogil:
    """Frames came back, or something happened to the interface: those that wait try again."""
    cdef bint there
    s.in_ready = True
    reap(s)
    there = kick(s, anyway)
    reap(s)
    if s.want_out and (s.nfree or s.down):
        s.want_out = False
        net_flush(s.nc)
    s.in_ready = False
    if there:
        xsk_poll(s)
    else:
        xsk_gone(s)


cdef void xsk_in_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef XskState *s = <XskState *>opaque
    s.nc.stats.wakeups += 1
    s.in_ready = True
    for _i in range(BATCHES):
        if s.fd < 0 or s.done < s.have:
            break
        xsk_read(s)
        if s.have == 0:
            break
        xsk_push(s)
    s.in_ready = False
    xsk_poll(s)


cdef void xsk_out_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef XskState *s = <XskState *>opaque
    s.nc.stats.wakeups += 1
    make_room(s, False)


cdef void xsk_event_ready(void *opaque, uint32_t ready) noexcept nogil:
    """Something happened to an interface of this network namespace. The socket does not tell that its own went away, or came up again,
    but it does when asked."""
    cdef XskState *s = <XskState *>opaque
    cdef uint8_t[8] junk
    s.nc.stats.wakeups += 1
    for _i in range(EVENT_READS):
        s.nc.stats.syscalls += 1
        if recv(s.eventfd, junk, sizeof(junk), MSG_DONTWAIT | MSG_TRUNC) < 0 and errno == EAGAIN:
            break
    make_room(s, True)


cdef uint32_t xsk_receive(NetClientState *nc, const Packet *pkts, uint32_t n) noexcept nogil:
    cdef XskState *s = <XskState *>nc.opaque
    cdef uint32_t i = 0
    cdef xdp_desc *d
    if s.gone or s.fd < 0:
        net_drop(nc, pkts, n, False, DROP_IO)
        return n
    if s.nfree < n:
        reap(s)
    while i < n:
        if pkts[i].size < ETH_HLEN:         # the kernel does not look, and devices rely on a header
            net_drop(nc, pkts + i, 1, False, DROP_MALFORMED)
            i += 1
            continue
        if s.nfree == 0:
            break
        s.nfree -= 1
        d = &(<xdp_desc *>s.tx.entries)[s.tx.next & (RING - 1)]
        d.addr = s.free[s.nfree]
        d.len = <uint32_t>iov_gather(pkts[i].iov, pkts[i].iovcnt, 0, s.umem + d.addr, pkts[i].size)
        d.options = 0
        s.tx.next += 1
        i += 1
    qn_store_release32(s.tx.producer, s.tx.next)
    kick(s, False)
    if i < n and s.down:
        net_drop(nc, pkts + i, n - i, False, DROP_IO)
        i = n
    s.want_out = i < n
    xsk_poll(s)
    return i


cdef void xsk_resume(NetClientState *nc) noexcept nogil:
    cdef XskState *s = <XskState *>nc.opaque
    xsk_push(s)
    xsk_poll(s)


cdef void xsk_cleanup(NetClientState *nc) noexcept nogil:
    cdef XskState *s = <XskState *>nc.opaque
    watch_remove(&s.in_watch)
    watch_remove(&s.out_watch)
    watch_remove(&s.event_watch)
    if s.fd >= 0:
        close(s.fd)
    if s.outfd >= 0:
        close(s.outfd)
    if s.eventfd >= 0:
        close(s.eventfd)
    s.fd = s.outfd = s.eventfd = -1
    s.gone = True
    s.done = s.have = 0
    ring_unmap(&s.fill)
    ring_unmap(&s.comp)
    ring_unmap(&s.rx)
    ring_unmap(&s.tx)
    if s.umem != NULL:
        munmap(s.umem, UMEM_SIZE)
    s.umem = NULL


cdef NetClientOps xsk_ops = NetClientOps(
    receive=xsk_receive,
    can_receive=NULL,
    resume=xsk_resume,
    link_status_changed=NULL,
    cleanup=xsk_cleanup,
)


@cython.no_gc_clear
cdef class XskClient(NetClient):
    """A queue of an interface: make_umem(), then bind(). `fd`: an AF_XDP socket, of which the client keeps a duplicate; -1: a new one.

    It never waits for the kernel. A frame that finds no free frame in the UMEM waits in the queue; while its peer has no room nothing
    is taken from the rx ring. Frames over 4096 bytes are dropped ("oversize"), those shorter than an Ethernet header too ("malformed"),
    and those for an interface that is down once the UMEM is full ("io"). When the interface goes away, the link goes down.
    OSError: no socket.
    """
    cdef XskState s
    cdef Loop loop

    def __cinit__(self, *args, **kwargs):
        self.s.fd = self.s.outfd = self.s.eventfd = -1
        self.s.in_watch.fd = self.s.out_watch.fd = self.s.event_watch.fd = -1

    def __init__(self, Loop loop not None, str name, str model, int fd=-1):
        super().__init__(loop, name, model)
        self.loop = loop
        self.s.nc = &self.nc
        self._setup(&xsk_ops, &self.s)
        self.nc.flow_control = True
        self.nc.max_frame = FRAME_SIZE
        if fd >= 0:
            self.s.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        else:
            self.s.fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)
            if self.s.fd < 0:
                check(-errno)
        self.s.outfd = fcntl.fcntl(self.s.fd, fcntl.F_DUPFD_CLOEXEC, 3)

    def __dealloc__(self):
        self._fini()

    def make_umem(self) -> int:
        """Give the kernel 16 MiB for frames, which stay in memory, and make the rings. 0 or -errno."""
        cdef xdp_umem_reg reg
        cdef void *p = mmap(NULL, UMEM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if p == MAP_FAILED:
            return -errno
        self.s.umem = <uint8_t *>p
        memset(&reg, 0, sizeof(reg))
        reg.addr = <uint64_t>p
        reg.len = UMEM_SIZE
        reg.chunk_size = FRAME_SIZE
        if setsockopt(self.s.fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)) < 0:
            return -errno
        return xsk_rings(&self.s)

    def bind(self, int ifindex, uint32_t queue_id, uint16_t flags) -> int:
        """Take the interface's queue, and begin. flags: XDP_COPY and others of sockaddr_xdp. 0 or -errno, and it can be tried again."""
        cdef sockaddr_xdp to
        cdef sockaddr_nl links
        cdef int rc
        memset(&to, 0, sizeof(to))
        to.family = AF_XDP
        to.flags = flags
        to.ifindex = ifindex
        to.queue_id = queue_id
        memset(&links, 0, sizeof(links))
        links.family = AF_NETLINK
        links.groups = RTMGRP_LINK
        if self.s.eventfd < 0:
            self.s.eventfd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0)
            if self.s.eventfd < 0 or bind(self.s.eventfd, <sockaddr *>&links, sizeof(links)) < 0:
                return -errno
        if bind(self.s.fd, <sockaddr *>&to, sizeof(to)) < 0:
            return -errno
        with nogil:
            context_enter(self.nc.ctx)
            watch_init(&self.s.in_watch, &self.loop.loop, xsk_in_ready, &self.s)
            watch_init(&self.s.out_watch, &self.loop.loop, xsk_out_ready, &self.s)
            watch_init(&self.s.event_watch, &self.loop.loop, xsk_event_ready, &self.s)
            rc = watch_add(&self.s.event_watch, self.s.eventfd, LOOP_IN)
            if rc == 0:
                rc = watch_add(&self.s.in_watch, self.s.fd, LOOP_IN)
            context_leave(self.nc.ctx)
        return rc

    @property
    def fd(self) -> int:
        """The socket; -1 once it is closed."""
        return self.s.fd

    @property
    def connected(self) -> bool:
        """Whether the interface is there."""
        return not self.s.gone


def bpf(int cmd, bytearray attr not None) -> int:
    """bpf(2): its result, or -errno. `attr`: the union bpf_attr, in which it may write."""
    cdef char *p = attr
    cdef long rc = syscall(SYS_bpf, cmd, p, <unsigned>len(attr))
    return -errno if rc < 0 else rc
