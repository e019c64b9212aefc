"""The CPU by KVM, with nothing but fcntl.ioctl, mmap and struct. Interrupt controllers, timer and port 0x61 are the kernel's.

Sources: the kernel's Documentation/virt/kvm/api.rst; the numbers are those of linux/kvm.h on x86-64.
"""

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import threading

from machine import Cpu, Region, Space

CREATE_VM, GET_VCPU_MMAP_SIZE, GET_SUPPORTED_CPUID, CREATE_VCPU, RUN = 0xAE01, 0xAE04, 0xC008AE05, 0xAE41, 0xAE80
SET_MEMORY, SET_TSS_ADDR, CREATE_IRQCHIP, IRQ_LINE, CREATE_PIT2, REINJECT = 0x4020AE46, 0xAE47, 0xAE60, 0x4008AE61, 0x4040AE77, 0xAE71
GET_REGS, SET_REGS, GET_SREGS, SET_CPUID2, ENABLE_CAP = 0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4008AE90, 0x4068AEA3
EXIT_IO, EXIT_MMIO, EXIT_INTERNAL_ERROR, CAP_EXIT_ON_EMULATION_FAILURE, MEM_READONLY = 2, 6, 17, 204, 2
IMMEDIATE_EXIT, EXIT_REASON, EXIT_DATA = 1, 8, 32  # offsets in struct kvm_run


class KvmCpu(Cpu):
    """Lives as long as the process. To be made on the main thread, because `stop` needs a signal handler."""

    def __init__(self, ram: mmap.mmap, ports: Space) -> None:
        super().__init__(ram, ports)
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self._vm = fcntl.ioctl(kvm, CREATE_VM, 0)
        fcntl.ioctl(self._vm, SET_TSS_ADDR, 0x7FFFD000)  # three pages for the kernel's own use, away from RAM and devices
        fcntl.ioctl(self._vm, CREATE_IRQCHIP, 0)
        fcntl.ioctl(self._vm, CREATE_PIT2, struct.pack("<I60x", 1))  # 1: port 0x61, too
        fcntl.ioctl(self._vm, REINJECT, bytes(32))  # ticks that the guest could not take are lost, not queued
        fcntl.ioctl(self._vm, ENABLE_CAP, struct.pack("<IIQ88x", CAP_EXIT_ON_EMULATION_FAILURE, 0, 1))
        self._memory: dict[int, mmap.mmap] = {}  # by start; the place in this dict is the number of the memory slot
        self._map(0, ram, len(ram), 0)
        self._vcpu = fcntl.ioctl(self._vm, CREATE_VCPU, 0)
        self._run = mmap.mmap(self._vcpu, fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))
        cpuid = bytearray(struct.pack("<II4000x", 100, 0))
        fcntl.ioctl(kvm, GET_SUPPORTED_CPUID, cpuid)
        fcntl.ioctl(self._vcpu, SET_CPUID2, cpuid)
        self._stopped = False
        self._thread: int | None = None
        signal.signal(signal.SIGUSR1, lambda signum, frame: None)

    def add(self, region: Region) -> None:
        super().add(region)
        if region.image:  # else there is nothing to tell the kernel: an address without memory exits
            memory = mmap.mmap(-1, region.length)
            memory[:] = region.image
            self._map(region.start, memory, region.length, MEM_READONLY)

    def remove(self, start: int) -> Region:
        if start in self._memory:
            self._map(start, self._memory[start], 0, 0)
        return super().remove(start)

    def _map(self, start: int, memory: mmap.mmap, length: int, flags: int) -> None:
        self._memory[start] = memory
        slot, address = list(self._memory).index(start), ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(self._vm, SET_MEMORY, struct.pack("<IIQQQ", slot, flags, start, length, address))

    def set_irq(self, line: int, level: int) -> None:
        fcntl.ioctl(self._vm, IRQ_LINE, struct.pack("<II", line, level))

    def stop(self) -> None:
        self._stopped = True
        self._run[IMMEDIATE_EXIT] = 1  # for a thread that has yet to enter KVM_RUN; the signal is for one that is in it
        if self._thread is not None:
            signal.pthread_kill(self._thread, signal.SIGUSR1)

    def run(self) -> None:
        self._thread = threading.get_ident()
        handlers = {EXIT_IO: self._port_access, EXIT_MMIO: self._memory_access, EXIT_INTERNAL_ERROR: self._emulate_iret}
        while not self._stopped:
            try:
                fcntl.ioctl(self._vcpu, RUN, 0)
            except InterruptedError:
                continue
            (reason,) = struct.unpack_from("<I", self._run, EXIT_REASON)
            if reason not in handlers:
                raise RuntimeError(f"KVM gave up: exit reason {reason}")
            handlers[reason]()
        self._thread = None

    def _port_access(self) -> None:
        is_write, size, port, count, data = struct.unpack_from("<BBHIQ", self._run, EXIT_DATA)
        for at in range(data, data + count * size, size):  # more than one for INS and OUTS with REP
            if is_write:
                self.ports.write(port, size, int.from_bytes(self._run[at : at + size], "little"))
            else:
                self._run[at : at + size] = self.ports.read(port, size).to_bytes(size, "little")

    def _memory_access(self) -> None:
        address, data, size, is_write = struct.unpack_from("<Q8sIB", self._run, EXIT_DATA)
        if is_write:
            self.write(address, size, int.from_bytes(data[:size], "little"))
        else:
            self._run[EXIT_DATA + 8 : EXIT_DATA + 8 + size] = self.read(address, size).to_bytes(size, "little")

    def _emulate_iret(self) -> None:
        """A KVM without VMX or SVM emulates most of what firmware does, and knows no IRET in protected mode: here it is.

        Such a KVM also pushes interrupt frames at linear ESP whatever the base of SS, so the frame is where its CS is the current one.
        """
        state, special = bytearray(144), bytearray(312)
        fcntl.ioctl(self._vcpu, GET_REGS, state)
        fcntl.ioctl(self._vcpu, GET_SREGS, special)
        registers = list(struct.unpack("<18Q", state))  # [6]: RSP, [16]: RIP, [17]: RFLAGS
        (code_base, code_selector), (stack_base, _) = (struct.unpack_from("<Q4xH", special, 24 * index) for index in (0, 5))
        code = code_base + registers[16] & 0xFFFFFFFF
        for frame in stack_base + registers[6] & 0xFFFFFFFF, registers[6] & 0xFFFFFFFF:
            eip, selector, flags = struct.unpack_from("<III", self.ram, frame)
            if selector == code_selector and self.ram[code] == 0xCF:
                registers[6], registers[16], registers[17] = registers[6] + 12, eip, flags & 0x3F7FD7 | 2
                fcntl.ioctl(self._vcpu, SET_REGS, struct.pack("<18Q", *registers))
                return
        raise RuntimeError(f"KVM cannot emulate the instruction at {code:#x}")
