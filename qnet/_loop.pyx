"""The event loop of one network: its file descriptors, timers and clock, and the three ways to run it.

thread      start(): an own thread that needs no GIL while no Python callable is involved
any loop    fileno() becomes readable when there is something to do; pump() does it
manual      with a VirtualClock nothing moves but in run_until(t): same input, same bytes
"""
cimport cython
from libc.errno cimport EEXIST, EINTR, EINVAL, ENOENT, ENOMEM, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, itimerspec, timespec
from posix.unistd cimport close, read, write

from qnet._context cimport (Deferred, NetContext, context_cancel, context_defer, context_enter, context_enter_gil, context_leave,
                            pthread_mutex_unlock)
from qnet._client cimport Context

import logging
import threading

from qnet.errors import check

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL

cdef extern from "<sys/timerfd.h>" nogil:
    int timerfd_create(int, int)
    int timerfd_settime(int, int, const itimerspec *, itimerspec *)
    int TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned, int)
    int EFD_NONBLOCK, EFD_CLOEXEC

log = logging.getLogger("qnet.loop")

cdef enum:
    EVENTS = 64
    TAG_TIMER = 0x7ffffffe
    TAG_WAKE = 0x7fffffff


cdef int64_t loop_now(LoopState *loop) noexcept nogil:
    """Nanoseconds of the network's clock."""
    cdef timespec t
    if loop.virtual_clock:
        return loop.now
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


# ----------------------------------------------------------------------------------------------------------------- timers
# A binary heap by (deadline, order).

cdef inline bint before(const Timer *a, const Timer *b) noexcept nogil:
    return a.deadline < b.deadline or (a.deadline == b.deadline and a.order < b.order)


cdef void heap_put(LoopState *loop, int32_t i, Timer *t) noexcept nogil:
    """Place t at i and move it to where it belongs."""
    cdef int32_t parent
    cdef int32_t child
    while i > 0:
        parent = (i - 1) // 2
        if not before(t, loop.heap[parent]):
            break
        loop.heap[i] = loop.heap[parent]
        loop.heap[i].slot = i
        i = parent
    while True:
        child = 2 * i + 1
        if child >= loop.heap_len:
            break
        if child + 1 < loop.heap_len and before(loop.heap[child + 1], loop.heap[child]):
            child += 1
        if not before(loop.heap[child], t):
            break
        loop.heap[i] = loop.heap[child]
        loop.heap[i].slot = i
        i = child
    loop.heap[i] = t
    t.slot = i


cdef void timer_init(Timer *t, LoopState *loop, expire_fn expire, void *opaque) noexcept nogil:
    t.loop = loop
    t.expire = expire
    t.opaque = opaque
    t.slot = -1


cdef int timer_set(Timer *t, int64_t deadline) noexcept nogil:
    cdef LoopState *loop = t.loop
    cdef Timer **grown
    cdef int32_t cap
    if t.slot < 0:
        if loop.heap_len == loop.heap_cap:
            cap = loop.heap_cap * 2 if loop.heap_cap else 16
            grown = <Timer **>realloc(loop.heap, cap * sizeof(Timer *))
            if grown == NULL:
                return -ENOMEM
            loop.heap = grown
            loop.heap_cap = cap
        t.slot = loop.heap_len
        loop.heap_len += 1
    t.deadline = deadline if deadline > 0 else 0
    t.order = loop.order
    loop.order += 1
    heap_put(loop, t.slot, t)
    if loop.heap[0] == t:
        loop.ctx.dirty = True
    return 0


cdef void timer_cancel(Timer *t) noexcept nogil:
    cdef LoopState *loop = t.loop
    cdef int32_t i = t.slot
    cdef Timer *last
    if i < 0:
        return
    t.slot = -1
    loop.heap_len -= 1
    last = loop.heap[loop.heap_len]
    if last != t:
        heap_put(loop, i, last)


cdef int expire_due(LoopState *loop) noexcept nogil:
    """Run what is due now. A timer that sets itself again for a time not later than now waits for the next round."""
    cdef int64_t now = loop_now(loop)
    cdef uint64_t first = loop.order
    cdef Timer *t
    cdef int n = 0
    while loop.heap_len and loop.heap[0].deadline <= now and loop.heap[0].order < first:
        t = loop.heap[0]
        timer_cancel(t)
        t.expire(t.opaque)
        n += 1
    return n


cdef void arm(LoopState *loop) noexcept nogil:
    """Point the timerfd at the earliest deadline. It is left alone when that is later than what it is set to."""
    cdef itimerspec its
    cdef int64_t want = loop.heap[0].deadline if loop.heap_len else -1
    if loop.virtual_clock or want < 0 or (loop.armed >= 0 and want >= loop.armed):
        return
    memset(&its, 0, sizeof(its))
    if want == 0:
        want = 1                                # 0 would disarm
    its.it_value.tv_sec = want // 1000000000
    its.it_value.tv_nsec = want % 1000000000
    timerfd_settime(loop.timerfd, TFD_TIMER_ABSTIME, &its, NULL)
    loop.armed = want


cdef void loop_leaving(NetContext *ctx) noexcept nogil:
    """Before the lock is dropped by anybody: pollers bring their watches up to date, the timerfd its deadline."""
    cdef LoopState *loop = <LoopState *>ctx.owner
    cdef Poller *p = loop.pollers
    while p != NULL:
        if p.touched:
            p.touched = False
            p.prepare(p.opaque)
        p = p.next
    ctx.dirty = False
    arm(loop)


# ---------------------------------------------------------------------------------------------------------------- watches

cdef void watch_init(Watch *w, LoopState *loop, ready_fn ready, void *opaque) noexcept nogil:
    w.loop = loop
    w.fd = -1
    w.ready = ready
    w.opaque = opaque


cdef int watch_add(Watch *w, int fd, uint32_t events) noexcept nogil:
    cdef LoopState *loop = w.loop
    cdef epoll_event ev
    cdef Watch **grown
    cdef int len
    if fd < 0:
        return -EINVAL
    if fd >= loop.by_fd_len:
        len = (fd + 64) & ~63
        grown = <Watch **>realloc(loop.by_fd, len * sizeof(Watch *))
        if grown == NULL:
            return -ENOMEM
        memset(&grown[loop.by_fd_len], 0, (len - loop.by_fd_len) * sizeof(Watch *))
        loop.by_fd = grown
        loop.by_fd_len = len
    if loop.by_fd[fd] != NULL:
        return -EEXIST
    loop.generation += 1
    memset(&ev, 0, sizeof(ev))
    ev.events = events
    ev.data.u64 = (<uint64_t>loop.generation << 32) | <uint32_t>fd
    if epoll_ctl(loop.epfd, EPOLL_CTL_ADD, fd, &ev) < 0:
        return -errno
    loop.by_fd[fd] = w
    w.fd = fd
    w.events = events
    w.generation = loop.generation
    return 0


cdef int watch_events(Watch *w, uint32_t events) noexcept nogil:
    cdef epoll_event ev
    if w.fd < 0:
        return -ENOENT
    if events == w.events and not events & LOOP_ONESHOT:
        return 0
    memset(&ev, 0, sizeof(ev))
    ev.events = events
    ev.data.u64 = (<uint64_t>w.generation << 32) | <uint32_t>w.fd
    if epoll_ctl(w.loop.epfd, EPOLL_CTL_MOD, w.fd, &ev) < 0:
        return -errno
    w.events = events
    return 0


cdef void watch_remove(Watch *w) noexcept nogil:
    """Before the fd is closed. Events of it that were collected already are not delivered."""
    cdef epoll_event ev
    if w.fd < 0:
        return
    memset(&ev, 0, sizeof(ev))
    epoll_ctl(w.loop.epfd, EPOLL_CTL_DEL, w.fd, &ev)
    w.loop.by_fd[w.fd] = NULL
    w.fd = -1


# ---------------------------------------------------------------------------------------------------------------- pollers

cdef void poller_add(Poller *p, LoopState *loop, expire_fn prepare, void *opaque) noexcept nogil:
    p.loop = loop
    p.prepare = prepare
    p.opaque = opaque
    p.next = loop.pollers
    loop.pollers = p
    poller_touch(p)


cdef void poller_touch(Poller *p) noexcept nogil:
    if p.loop != NULL:
        p.touched = True
        p.loop.ctx.dirty = True


cdef void poller_remove(Poller *p) noexcept nogil:
    cdef Poller **at
    if p.loop == NULL:
        return
    at = &p.loop.pollers
    while at[0] != NULL and at[0] != p:
        at = &at[0].next
    if at[0] == p:
        at[0] = p.next
    p.loop = NULL


# --------------------------------------------------------------------------------------------------------------- dispatch

cdef int dispatch(LoopState *loop, int timeout) noexcept nogil:
    """Wait for events (ms, -1: for ever) without the lock, then handle them and the timers with it. Events handled or -errno."""
    cdef epoll_event evs[EVENTS]
    cdef uint64_t count
    cdef uint32_t tag
    cdef Watch *w
    cdef int n = epoll_wait(loop.epfd, evs, EVENTS, timeout)
    cdef int done = 0
    cdef int i
    if n < 0:
        return 0 if errno == EINTR else -errno
    context_enter(loop.ctx)
    loop.wakeups += 1
    for i in range(n):
        tag = <uint32_t>evs[i].data.u64
        if tag == TAG_TIMER or tag == TAG_WAKE:
            if read(loop.timerfd if tag == TAG_TIMER else loop.wakefd, &count, 8) == 8 and tag == TAG_TIMER:
                loop.armed = -1
            continue
        w = loop.by_fd[tag] if tag < <uint32_t>loop.by_fd_len else NULL
        if w != NULL and w.generation == <uint32_t>(evs[i].data.u64 >> 32):
            w.ready(w.opaque, evs[i].events)
            done += 1
    if not loop.virtual_clock:
        done += expire_due(loop)
    loop.ctx.dirty = True
    context_leave(loop.ctx)
    return done


cdef class VirtualClock:
    """Time that moves only in Net.run_until(): same input, same timers, same bytes. `start`: nanoseconds at the beginning."""

    def __init__(self, int64_t start=0):
        self.start = start

    def __repr__(self):
        return f"VirtualClock({self.start})"


@cython.no_gc_clear
cdef class Loop(Context):
    """fds, timers and clock of one network. Loop(clock=None): monotonic host time; Loop(clock=VirtualClock()): manual."""

    def __cinit__(self, clock=None):
        cdef epoll_event ev
        self.loop.ctx = &self.ctx
        self.handles = set()
        self.at_close = []
        self.loop.armed = -1
        self.loop.epfd = self.loop.timerfd = self.loop.wakefd = -1
        if clock is not None and not isinstance(clock, VirtualClock):
            raise TypeError(f"clock must be None or a VirtualClock, not {type(clock).__name__}")
        self.clock = clock
        if clock is not None:
            self.loop.virtual_clock = True
            self.loop.now = clock.start
        self.loop.epfd = epoll_create1(EPOLL_CLOEXEC)
        self.loop.timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.loop.wakefd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.loop.epfd < 0 or self.loop.timerfd < 0 or self.loop.wakefd < 0:
            check(-errno, "cannot create the event loop's file descriptors")
        memset(&ev, 0, sizeof(ev))
        ev.events = LOOP_IN
        ev.data.u64 = TAG_TIMER
        epoll_ctl(self.loop.epfd, EPOLL_CTL_ADD, self.loop.timerfd, &ev)
        ev.data.u64 = TAG_WAKE
        epoll_ctl(self.loop.epfd, EPOLL_CTL_ADD, self.loop.wakefd, &ev)
        self.ctx.owner = &self.loop
        self.ctx.leaving = loop_leaving

    def __dealloc__(self):
        self._release()

    cdef void _release(self) noexcept:
        """Let go of the fds, and of watches and timers that their owners have not removed yet: those find them removed."""
        cdef int i
        cdef Poller *p = self.loop.pollers
        context_enter_gil(&self.ctx)
        for i in range(self.loop.by_fd_len):
            if self.loop.by_fd[i] != NULL:
                self.loop.by_fd[i].fd = -1
        for i in range(self.loop.heap_len):
            self.loop.heap[i].slot = -1
        while p != NULL:
            p.loop = NULL
            p = p.next
        self.loop.pollers = NULL
        if self.loop.epfd >= 0:
            close(self.loop.epfd)
        if self.loop.timerfd >= 0:
            close(self.loop.timerfd)
        if self.loop.wakefd >= 0:
            close(self.loop.wakefd)
        self.loop.epfd = self.loop.timerfd = self.loop.wakefd = -1
        free(self.loop.heap)
        free(self.loop.by_fd)
        self.loop.heap = NULL
        self.loop.by_fd = NULL
        self.loop.heap_len = self.loop.heap_cap = self.loop.by_fd_len = 0
        pthread_mutex_unlock(&self.ctx.lock)

    cdef int _fd(self) except -1:
        if self.closed:
            raise ValueError("the network is closed")
        return self.loop.epfd

    def now(self) -> int:
        """Nanoseconds of the network's clock."""
        return loop_now(&self.loop)

    @property
    def started(self) -> bool:
        """Whether the thread of start() runs."""
        return self.thread is not None

    @property
    def wakeups(self) -> int:
        """How often the loop woke up: stands still while the network is idle."""
        return self.loop.wakeups

    def fileno(self) -> int:
        """A file descriptor that is readable when pump() has something to do."""
        return self._fd()

    def pump(self) -> int:
        """Handle what is ready now, without waiting; number of events and timers handled."""
        cdef int n
        self._fd()
        with nogil:
            n = dispatch(&self.loop, 0)
        self.run_deferred()
        return check(n, "epoll_wait")

    def run_until(self, int64_t t):
        """Virtual clock only: handle what is ready, then each timer due up to t (ns) at its own time, and stop at t."""
        cdef int64_t due
        self._fd()
        if not self.loop.virtual_clock:
            raise ValueError("run_until() needs clock=VirtualClock()")
        if t < self.loop.now:
            raise ValueError(f"time {t} is in the past: it is {self.loop.now}")
        while True:
            while self.pump():
                pass
            with nogil:
                context_enter(&self.ctx)
                due = self.loop.heap[0].deadline if self.loop.heap_len else -1
                if due >= 0 and due <= t:
                    if due > self.loop.now:
                        self.loop.now = due
                    expire_due(&self.loop)
                    self.ctx.dirty = True
                else:
                    due = -1
                    self.loop.now = t
                context_leave(&self.ctx)
            self.run_deferred()
            if due < 0:
                break

    def call_later(self, int64_t ns, callback):
        """Call `callback()` once, ns nanoseconds from now, without the lock. Returns a handle with cancel()."""
        self._fd()
        cdef TimerHandle h = TimerHandle(self, callback)
        h._start(ns)
        return h

    def watch(self, int fd, uint32_t events, callback):
        """Call `callback(ready)`, without the lock, whenever the fd is ready for `events`: select.EPOLLIN, EPOLLOUT. `ready` is what
        it is ready for, and EPOLLERR and EPOLLHUP. Returns a handle with cancel(), to be called before the fd is closed. While the
        callable has not returned it is not called again; one that raises is logged and not called any more. HostError: the fd is
        not open, cannot be waited for, or is watched already."""
        self._fd()
        cdef WatchHandle h = WatchHandle(self, callback)
        h._start(fd, events)
        return h

    def wake(self):
        """Make fileno() readable, or a running thread look around."""
        cdef uint64_t one = 1
        if not self.closed and write(self.loop.wakefd, &one, 8) < 0:
            return

    def _run(self, uint32_t mine):
        cdef int n = 0
        while self.run == mine and n >= 0:
            with nogil:                         # the GIL is taken only when something was left for Python
                while True:
                    n = dispatch(&self.loop, -1)
                    if self.run != mine or n < 0 or self.ctx.first != NULL:
                        break
            self.run_deferred()
        if n < 0:
            log.error("event loop stopped: epoll_wait: errno %d", -n)

    def start(self):
        """Run in an own thread until stop(). RuntimeError with a virtual clock or when it runs already."""
        self._fd()
        if self.loop.virtual_clock:
            raise RuntimeError("a network with a virtual clock moves only in run_until()")
        if self.thread is not None:
            raise RuntimeError("the network runs already")
        self.thread = threading.Thread(target=self._run, args=(self.run,), name="qnet", daemon=True)
        self.thread.start()

    def stop(self):
        """End the thread of start(); what is queued stays. Idempotent; from the thread itself it ends after this callback."""
        thread = self.thread
        self.thread = None
        self.run += 1
        if thread is None or thread is threading.current_thread():
            return
        while thread.is_alive():
            self.wake()                         # again, if somebody else's pump() took it
            thread.join(0.1)

    def close(self):
        """Stop and release the file descriptors. Idempotent. Clients are closed before."""
        if self.closed:
            return
        self.stop()
        self.closed = True
        for handle in list(self.handles):
            handle.cancel()
        for callback in list(self.at_close):
            callback()
        self._release()


# -------------------------------------------------------------------------------------------- Python's timers and watches

cdef void handle_expire(void *opaque) noexcept nogil:
    cdef TimerHandleState *s = <TimerHandleState *>opaque
    context_defer(s.timer.loop.ctx, &s.node)


cdef void handle_run(void *owner) noexcept:
    (<TimerHandle>owner)._fire()


cdef struct TimerHandleState:
    Timer timer
    Deferred node


@cython.no_gc_clear
cdef class TimerHandle:
    """A timer set by Loop.call_later()."""
    cdef TimerHandleState s
    cdef Loop loop
    cdef object callback

    def __init__(self, Loop loop, callback):
        self.loop = loop
        self.callback = callback
        memset(&self.s, 0, sizeof(self.s))
        timer_init(&self.s.timer, &loop.loop, handle_expire, &self.s)
        self.s.node.owner = <void *>self
        self.s.node.run = handle_run

    cdef int _start(self, int64_t ns) except -1:
        cdef int64_t now
        cdef int rc
        self.loop.handles.add(self)
        with nogil:
            context_enter(self.loop.loop.ctx)
            now = loop_now(&self.loop.loop)
            rc = timer_set(&self.s.timer, INT64_MAX if ns > INT64_MAX - now else now + (ns if ns > 0 else 0))
            context_leave(self.loop.loop.ctx)
        if rc < 0:
            self.loop.handles.discard(self)
            raise MemoryError
        return 0

    cdef void _fire(self) noexcept:
        if self not in self.loop.handles:
            return
        self.loop.handles.discard(self)
        try:
            self.callback()
        except Exception:
            log.exception("timer callable failed")

    def cancel(self):
        """The callable will not be called any more. Idempotent."""
        self.loop.handles.discard(self)
        with nogil:
            context_enter(self.loop.loop.ctx)
            timer_cancel(&self.s.timer)
            context_cancel(self.loop.loop.ctx, &self.s.node)
            context_leave(self.loop.loop.ctx)


cdef void watch_handle_ready(void *opaque, uint32_t ready) noexcept nogil:
    cdef WatchHandleState *s = <WatchHandleState *>opaque
    s.ready = ready
    context_defer(s.watch.loop.ctx, &s.node)


cdef void watch_handle_run(void *owner) noexcept:
    (<WatchHandle>owner)._fire()


cdef struct WatchHandleState:
    Watch watch
    Deferred node
    uint32_t ready


@cython.no_gc_clear
cdef class WatchHandle:
    """A file descriptor watched by Loop.watch()."""
    cdef WatchHandleState s
    cdef Loop loop
    cdef object callback

    def __init__(self, Loop loop, callback):
        self.loop = loop
        self.callback = callback
        memset(&self.s, 0, sizeof(self.s))
        watch_init(&self.s.watch, &loop.loop, watch_handle_ready, &self.s)
        self.s.node.owner = <void *>self
        self.s.node.run = watch_handle_run

    cdef int _start(self, int fd, uint32_t events) except -1:
        cdef int rc
        self.loop.handles.add(self)
        with nogil:
            context_enter(self.loop.loop.ctx)
            rc = watch_add(&self.s.watch, fd, events | LOOP_ONESHOT)
            context_leave(self.loop.loop.ctx)
        if rc < 0:
            self.loop.handles.discard(self)
        check(rc, "cannot watch a file descriptor")
        return 0

    cdef void _fire(self) noexcept:
        cdef int rc
        if self not in self.loop.handles:
            return
        try:
            self.callback(self.s.ready)
        except Exception:
            log.exception("watch callable failed")
            self.cancel()
            return
        if self in self.loop.handles:
            with nogil:
                context_enter(self.loop.loop.ctx)
                rc = watch_events(&self.s.watch, self.s.watch.events)
                context_leave(self.loop.loop.ctx)
            if rc < 0:                          # closed behind our back
                self.cancel()

    def cancel(self):
        """The callable will not be called any more. Idempotent."""
        self.loop.handles.discard(self)
        with nogil:
            context_enter(self.loop.loop.ctx)
            watch_remove(&self.s.watch)
            context_cancel(self.loop.loop.ctx, &self.s.node)
            context_leave(self.loop.loop.ctx)
