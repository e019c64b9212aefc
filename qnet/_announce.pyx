"""Sends a NIC's self-announcement: a frame that tells switches where the address lives now (fact A3)."""
from libc.stdint cimport uint32_t
from libc.string cimport memset

from qnet._context cimport context_enter, context_leave
from qnet._client cimport NetClient
from qnet._fastpath cimport GSO_NONE, Packet, net_send
from qnet._iov cimport iovec


def announce(NetClient client not None, bytes mac not None):
    """Send the announcement of `mac` to the client's peer: a RARP "request reverse" (RFC 903) to everybody, 60 bytes."""
    cdef bytes frame = (
        b"\xff" * 6 + mac + b"\x80\x35"
        + b"\x00\x01\x08\x00\x06\x04\x00\x03"       # Ethernet, IPv4, their address lengths, operation 3
        + mac + bytes(4) + mac + bytes(4)
    ).ljust(60, b"\0")
    cdef iovec iov
    cdef Packet pkt
    memset(&pkt, 0, sizeof(pkt))
    iov.iov_base = <void *><const unsigned char *>frame
    iov.iov_len = len(frame)
    pkt.iov = &iov
    pkt.iovcnt = 1
    pkt.size = <uint32_t>len(frame)
    pkt.off.gso_type = GSO_NONE
    with nogil:
        context_enter(client.nc.ctx)
        net_send(&client.nc, &pkt, 1)
        context_leave(client.nc.ctx)
    client.context.run_deferred()
