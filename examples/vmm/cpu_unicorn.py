"""A CPU made of unicorn, QEMU's translator as a library. It has no interrupt input and no HLT of its own; both are here.

unicorn must not be stopped from another thread, nor by its own timeout: the state it leaves is not that of an instruction boundary. So it
runs slices of so many instructions, and everything asynchronous happens between two slices.
"""

import ctypes
import mmap
import struct
import threading
from collections import deque
from typing import Any

import unicorn
from legacy import InterruptController, Timer
from machine import Cpu, Region, Space
from unicorn import x86_const as x86

NAMES = "CR0", "CS", "DS", "EFLAGS", "EIP", "ES", "ESP", "GDTR", "IDTR", "SS"
CR0, CS, DS, EFLAGS, EIP, ES, ESP, GDTR, IDTR, SS = (getattr(x86, f"UC_X86_REG_{name}") for name in NAMES)
SLICE = 20_000  # instructions, a fraction of a millisecond
INTERRUPT_FLAG, TRAP_FLAG = 0x200, 0x100


class UnicornCpu(Cpu):
    """The guest's RAM is the caller's mmap itself, not a copy."""

    def __init__(self, ram: mmap.mmap, ports: Space) -> None:
        super().__init__(ram, ports)
        self._controller = InterruptController(ports)
        self._timer = Timer(ports, self._controller)
        self._irqs: deque[tuple[int, int]] = deque()  # (line, level), from any thread
        self._wake = threading.Event()
        self._stopped = False
        uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)  # type: ignore[attr-defined,no-untyped-call]  # typed for Python 2
        self._uc = uc
        uc.mem_map_ptr(0, len(ram), unicorn.UC_PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(ram)))
        uc.hook_add(unicorn.UC_HOOK_INSN, lambda uc, port, size, _: ports.read(port, size), aux1=x86.UC_X86_INS_IN)
        uc.hook_add(unicorn.UC_HOOK_INSN, lambda uc, port, size, value, _: ports.write(port, size, value), aux1=x86.UC_X86_INS_OUT)
        uc.hook_add(unicorn.UC_HOOK_INTR, lambda uc, vector, _: self._enter_handler(vector))
        uc.hook_add(unicorn.UC_HOOK_MEM_READ_UNMAPPED | unicorn.UC_HOOK_MEM_WRITE_UNMAPPED, self._nobody)
        for register, value in (CR0, 0x60000010), (DS, 0), (ES, 0), (SS, 0), (CS, 0xF000), (EIP, 0xFFF0):
            uc.reg_write(register, value)

    def add(self, region: Region) -> None:
        super().add(region)
        start, length, read, write, image = region
        if image:
            self._uc.mem_map(start, length, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
            self._uc.mem_write(start, image)
        else:
            self._uc.mmio_map(start, length, lambda uc, *at: read(*at[:2]), None, lambda uc, *at: write(*at[:3]), None)

    def remove(self, start: int) -> Region:
        region = super().remove(start)
        self._uc.mem_unmap(start, region.length)
        return region

    def set_irq(self, line: int, level: int) -> None:
        self._irqs.append((line, level))
        self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def run(self) -> None:
        uc = self._uc
        while not self._stopped:
            self._wake.clear()
            while self._irqs:
                self._controller.set_line(*self._irqs.popleft())
            until_tick = self._timer.advance()
            if uc.reg_read(EFLAGS) & INTERRUPT_FLAG:
                end = self._base(CS) + uc.reg_read(EIP) & 0xFFFFFFFF
                last = self.ram[max(0, end - 2) : end]  # the bytes before the program counter
                # MOV SS and POP SS let no interrupt in before the next instruction (SDM volume 3, 6.8.3).
                stack_switch = last[1:] == b"\x17" or (last[:1] == b"\x8e" and last[1] & 0xF8 == 0xD0)
                vector = None if stack_switch else self._controller.take()
                if vector is not None:
                    self._enter_handler(vector)
                elif last[1:] == b"\xf4":  # HLT, behind which unicorn returns; waking a guest for nothing does no harm
                    self._wake.wait(until_tick)
            uc.emu_start(uc.reg_read(EIP), 0xFFFFFFFD, count=SLICE)  # an `until` that no guest reaches

    def _enter_handler(self, vector: int) -> None:
        """Enter the handler of an interrupt or INT instruction, without privilege change (SDM volume 3, 6.12.1 and 20.1.4)."""
        uc = self._uc
        eip, esp, flags, cs = (uc.reg_read(register) for register in (EIP, ESP, EFLAGS, CS))
        stack = self._base(SS)
        if uc.reg_read(CR0) & 1:
            gates = uc.reg_read(IDTR)[1]
            low, selector, kind, high = struct.unpack_from("<HHxBH", self.ram, gates + 8 * vector)
            if not kind & 0x80:
                raise RuntimeError(f"the guest has no handler for vector {vector} (CS:EIP {cs:04x}:{eip:08x})")
            target = low | high << 16
            esp -= 12
            struct.pack_into("<III", self.ram, stack + esp & 0xFFFFFFFF, eip, cs, flags)
        else:
            target, selector = struct.unpack_from("<HH", self.ram, 4 * vector)
            esp = esp & ~0xFFFF | esp - 6 & 0xFFFF
            struct.pack_into("<HHH", self.ram, stack + (esp & 0xFFFF), eip & 0xFFFF, cs, flags & 0xFFFF)
        uc.reg_write(ESP, esp & 0xFFFFFFFF)
        uc.reg_write(EFLAGS, flags & ~(INTERRUPT_FLAG | TRAP_FLAG))
        if selector != cs:
            uc.reg_write(CS, selector)
        uc.reg_write(EIP, target)

    def _base(self, segment: int) -> int:
        """Linear address where a segment begins."""
        selector = int(self._uc.reg_read(segment))
        if not self._uc.reg_read(CR0) & 1:
            return selector << 4
        table = self._uc.reg_read(GDTR)[1]
        low, high = struct.unpack_from("<II", self.ram, table + (selector & ~7))
        return int(low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000)

    def _nobody(self, uc: object, access: int, address: int, size: int, value: int, _: object) -> bool:
        """First access to a page that nobody owns: from now on it reads all ones."""
        self.add(Region(address & ~0xFFF, 0x1000))
        return True
