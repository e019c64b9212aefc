/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "fdio.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Without fstat, which glibc 2.33 gave a new version. */
int qn_fd_kind(int fd)
{
    int type;
    socklen_t len = sizeof type;

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0)
        return QN_FD_SOCKET;
    if (errno != ENOTSOCK)
        return -errno;
    return fcntl(fd, F_GETPIPE_SZ) >= 0 ? QN_FD_PIPE : QN_FD_FILE;
}

/* A pipe has no MSG_NOSIGNAL: hold the signal back from this thread, and swallow the one that the write itself raised. */
static ssize_t pipe_writev(int fd, const struct iovec *iov, unsigned iovcnt)
{
    const struct timespec at_once = {0, 0};
    sigset_t pipe_only, old, pending;
    int others = 0; /* one was pending before, and is not ours to take */
    ssize_t n;
    int err;

    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_only, &old);
    if (sigismember(&old, SIGPIPE) && sigpending(&pending) == 0)
        others = sigismember(&pending, SIGPIPE);
    n = writev(fd, iov, (int)iovcnt);
    err = errno;
    if (n < 0 && err == EPIPE && !others)
        sigtimedwait(&pipe_only, NULL, &at_once);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    errno = err;
    return n;
}

ssize_t qn_writev(int fd, int kind, const struct iovec *iov, unsigned iovcnt)
{
    struct msghdr msg;
    ssize_t n;

    do {
        if (kind == QN_FD_SOCKET) {
            memset(&msg, 0, sizeof msg);
            msg.msg_iov = (struct iovec *)iov;
            msg.msg_iovlen = iovcnt;
            n = sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else if (kind == QN_FD_PIPE) {
            n = pipe_writev(fd, iov, iovcnt);
        } else {
            n = writev(fd, iov, (int)iovcnt);
        }
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

ssize_t qn_read(int fd, int kind, void *buf, size_t len)
{
    ssize_t n;

    do
        n = kind == QN_FD_SOCKET ? recv(fd, buf, len, MSG_DONTWAIT) : read(fd, buf, len);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}
