/* SPDX-License-Identifier: MIT */
#include "bpf.h"

#include <string.h>

int qn_bpf_check(const struct sock_filter *prog, unsigned n)
{
    uint16_t stored[QN_BPF_MAX]; /* words of memory that every jump to an instruction finds stored */
    uint16_t now = 0;            /* ... and that are stored where we are */
    if (n == 0 || n > QN_BPF_MAX)
        return (int)n;
    memset(stored, 0xff, n * sizeof(stored[0]));
    for (unsigned i = 0; i < n; i++) {
        const struct sock_filter *f = &prog[i];
        unsigned left = n - i - 1; /* instructions behind this one; jumps only go forward */
        now &= stored[i];
        switch (f->code) {
        case BPF_LD | BPF_W | BPF_ABS: case BPF_LD | BPF_H | BPF_ABS: case BPF_LD | BPF_B | BPF_ABS:
            if (f->k >= (uint32_t)SKF_AD_OFF)
                return (int)i;
            break;
        case BPF_LD | BPF_W | BPF_IND: case BPF_LD | BPF_H | BPF_IND: case BPF_LD | BPF_B | BPF_IND:
        case BPF_LDX | BPF_B | BPF_MSH:
        case BPF_LD | BPF_IMM: case BPF_LDX | BPF_IMM:
        case BPF_LD | BPF_W | BPF_LEN: case BPF_LDX | BPF_W | BPF_LEN:
        case BPF_ALU | BPF_ADD | BPF_K: case BPF_ALU | BPF_ADD | BPF_X:
        case BPF_ALU | BPF_SUB | BPF_K: case BPF_ALU | BPF_SUB | BPF_X:
        case BPF_ALU | BPF_MUL | BPF_K: case BPF_ALU | BPF_MUL | BPF_X:
        case BPF_ALU | BPF_OR | BPF_K: case BPF_ALU | BPF_OR | BPF_X:
        case BPF_ALU | BPF_AND | BPF_K: case BPF_ALU | BPF_AND | BPF_X:
        case BPF_ALU | BPF_XOR | BPF_K: case BPF_ALU | BPF_XOR | BPF_X:
        case BPF_ALU | BPF_DIV | BPF_X: case BPF_ALU | BPF_MOD | BPF_X:
        case BPF_ALU | BPF_LSH | BPF_X: case BPF_ALU | BPF_RSH | BPF_X:
        case BPF_ALU | BPF_NEG:
        case BPF_RET | BPF_K: case BPF_RET | BPF_A:
        case BPF_MISC | BPF_TAX: case BPF_MISC | BPF_TXA:
            break;
        case BPF_ALU | BPF_DIV | BPF_K: case BPF_ALU | BPF_MOD | BPF_K:
            if (f->k == 0)
                return (int)i;
            break;
        case BPF_ALU | BPF_LSH | BPF_K: case BPF_ALU | BPF_RSH | BPF_K:
            if (f->k >= 32)
                return (int)i;
            break;
        case BPF_LD | BPF_MEM: case BPF_LDX | BPF_MEM:
            if (f->k >= BPF_MEMWORDS || !(now >> f->k & 1))
                return (int)i;
            break;
        case BPF_ST: case BPF_STX:
            if (f->k >= BPF_MEMWORDS)
                return (int)i;
            now |= (uint16_t)(1u << f->k);
            break;
        case BPF_JMP | BPF_JA:
            if (f->k >= left)
                return (int)i;
            stored[i + 1 + f->k] &= now;
            now = 0xffff; /* the next instruction is reached by jumps alone */
            break;
        case BPF_JMP | BPF_JEQ | BPF_K: case BPF_JMP | BPF_JEQ | BPF_X:
        case BPF_JMP | BPF_JGT | BPF_K: case BPF_JMP | BPF_JGT | BPF_X:
        case BPF_JMP | BPF_JGE | BPF_K: case BPF_JMP | BPF_JGE | BPF_X:
        case BPF_JMP | BPF_JSET | BPF_K: case BPF_JMP | BPF_JSET | BPF_X:
            if (f->jt >= left || f->jf >= left)
                return (int)i;
            stored[i + 1 + f->jt] &= now;
            stored[i + 1 + f->jf] &= now;
            now = 0xffff;
            break;
        default:
            return (int)i;
        }
    }
    return BPF_CLASS(prog[n - 1].code) == BPF_RET ? -1 : (int)n;
}

/* `n` (1, 2, 4) bytes at `off`, most significant first. 0 when the frame does not have them all. */
static int load(const struct iovec *iov, unsigned iovcnt, uint32_t size, uint64_t off, uint32_t n, uint32_t *out)
{
    uint8_t split[4];
    const uint8_t *p;
    if (off + n > size)
        return 0;
    while (iovcnt && off >= iov->iov_len) {
        off -= iov->iov_len;
        iov++;
        iovcnt--;
    }
    if (iovcnt && off + n <= iov->iov_len) {
        p = (const uint8_t *)iov->iov_base + off;
    } else {
        for (uint32_t i = 0; i < n; i++) {
            while (iovcnt && off >= iov->iov_len) {
                off -= iov->iov_len;
                iov++;
                iovcnt--;
            }
            if (iovcnt == 0)
                return 0;
            split[i] = ((const uint8_t *)iov->iov_base)[off++];
        }
        p = split;
    }
    if (n == 1)
        *out = p[0];
    else if (n == 2)
        *out = (uint32_t)p[0] << 8 | p[1];
    else
        *out = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    return 1;
}

uint32_t qn_bpf_run(const struct sock_filter *f, const struct iovec *iov, unsigned iovcnt, uint32_t size)
{
    uint32_t a = 0, x = 0, mem[BPF_MEMWORDS] = {0};
    for (;; f++) {
        uint32_t k = f->k, v = BPF_SRC(f->code) == BPF_X ? x : k;
        switch (BPF_CLASS(f->code)) {
        case BPF_LD:
            if (BPF_MODE(f->code) == BPF_ABS || BPF_MODE(f->code) == BPF_IND) {
                uint32_t at = k + (BPF_MODE(f->code) == BPF_IND ? x : 0);
                uint32_t n = BPF_SIZE(f->code) == BPF_W ? 4 : BPF_SIZE(f->code) == BPF_H ? 2 : 1;
                if (!load(iov, iovcnt, size, at, n, &a))
                    return 0;
            } else {
                a = BPF_MODE(f->code) == BPF_MEM ? mem[k] : BPF_MODE(f->code) == BPF_LEN ? size : k;
            }
            break;
        case BPF_LDX:
            if (BPF_MODE(f->code) == BPF_MSH) {
                if (!load(iov, iovcnt, size, k, 1, &x))
                    return 0;
                x = (x & 0xf) << 2;
            } else {
                x = BPF_MODE(f->code) == BPF_MEM ? mem[k] : BPF_MODE(f->code) == BPF_LEN ? size : k;
            }
            break;
        case BPF_ST:
            mem[k] = a;
            break;
        case BPF_STX:
            mem[k] = x;
            break;
        case BPF_ALU:
            switch (BPF_OP(f->code)) {
            case BPF_ADD: a += v; break;
            case BPF_SUB: a -= v; break;
            case BPF_MUL: a *= v; break;
            case BPF_OR: a |= v; break;
            case BPF_AND: a &= v; break;
            case BPF_XOR: a ^= v; break;
            case BPF_LSH: a <<= v & 31; break;
            case BPF_RSH: a >>= v & 31; break;
            case BPF_NEG: a = -a; break;
            case BPF_DIV:
                if (v == 0)
                    return 0;
                a /= v;
                break;
            case BPF_MOD:
                if (v == 0)
                    return 0;
                a %= v;
                break;
            }
            break;
        case BPF_JMP:
            switch (BPF_OP(f->code)) {
            case BPF_JA: f += k; break;
            case BPF_JEQ: f += a == v ? f->jt : f->jf; break;
            case BPF_JGT: f += a > v ? f->jt : f->jf; break;
            case BPF_JGE: f += a >= v ? f->jt : f->jf; break;
            case BPF_JSET: f += a & v ? f->jt : f->jf; break;
            }
            break;
        case BPF_RET:
            return BPF_RVAL(f->code) == BPF_A ? a : k;
        case BPF_MISC:
            if (BPF_MISCOP(f->code) == BPF_TAX)
                x = a;
            else
                a = x;
            break;
        }
    }
}
