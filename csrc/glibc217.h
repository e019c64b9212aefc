/* SPDX-License-Identifier: MIT
 * Included first in every extension module (setup.py). glibc 2.34 moved these from libpthread to libc under a new version; by
 * their old one, a wheel built there runs on glibc 2.17 too. tests/test_wheel.py notices when a name is missing here. */
#if defined(__x86_64__) && __has_include(<gnu/libc-version.h>) /* glibc; no header yet, macros of theirs are still to come */
#define QN_OLD(name) __asm__(".symver " #name ", " #name "@GLIBC_2.2.5")
QN_OLD(pthread_mutex_trylock);
QN_OLD(pthread_rwlock_init);
QN_OLD(pthread_rwlock_rdlock);
QN_OLD(pthread_rwlock_wrlock);
QN_OLD(pthread_rwlock_unlock);
QN_OLD(pthread_sigmask);
#undef QN_OLD
#endif
