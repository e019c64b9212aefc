# Message sockets as recvmmsg(2), sendmmsg(2), cmsg(3) and udp(7) have them. Externs only; no .pyx.
cdef extern from "<sys/socket.h>" nogil:
    cdef struct msghdr:
        void *msg_name
        unsigned msg_namelen
        void *msg_iov                   # iovec *; _iov.pxd is a neighbour
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *)
    unsigned char *CMSG_DATA(cmsghdr *)
    size_t CMSG_LEN(size_t)
    size_t CMSG_SPACE(size_t)
    cdef struct sockaddr:
        pass
    int socket(int, int, int)
    int connect(int, const sockaddr *, unsigned)
    int AF_UNIX, SOCK_DGRAM, SOCK_CLOEXEC, SOCK_NONBLOCK
    int MSG_DONTWAIT, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_TRUNC
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned msg_len
    int recvmmsg(int, mmsghdr *, unsigned, int, void *)
    int sendmmsg(int, mmsghdr *, unsigned, int)

cdef extern from "<linux/udp.h>" nogil:
    int UDP_SEGMENT, UDP_GRO

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_UDP

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *, unsigned long, int)
    int POLLHUP, POLLOUT, POLLRDHUP
