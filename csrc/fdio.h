/* SPDX-License-Identifier: MIT
 * Gathered writes that never raise SIGPIPE, whatever this process does with that signal. */
#ifndef QN_FDIO_H
#define QN_FDIO_H
#include <sys/types.h>
#include <sys/uio.h>

enum qn_fd_kind { QN_FD_FILE, QN_FD_PIPE, QN_FD_SOCKET };

/* What `fd` is, or -errno. Everything that is no socket and no FIFO counts as a file. */
int qn_fd_kind(int fd);

/* writev(2): bytes written or -errno; EINTR is retried. A socket is not waited for even if it is in blocking mode. */
ssize_t qn_writev(int fd, int kind, const struct iovec *iov, unsigned iovcnt);

/* read(2), likewise: 0 at the end of the file. */
ssize_t qn_read(int fd, int kind, void *buf, size_t len);
#endif
