"""Join netdevs: python examples/switch.py NETDEV... Each argument is what stands behind QEMU's -netdev, and becomes a port of one hub.

Runs until Ctrl-C or SIGTERM, then prints what each netdev has carried.
"""

import signal
import sys

import qnet


def main(specs: list[str]) -> int:
    if not specs:
        print(__doc__, file=sys.stderr)
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, ends := {signal.SIGINT, signal.SIGTERM})  # before the network's thread inherits the mask
    with qnet.Net() as net:
        try:
            for n, spec in enumerate(specs):
                client = net.netdev_add(spec)
                net.netdev_add(f"hubport,id=port{n},hubid=0,netdev={client.name}")
        except qnet.Error as error:
            print(f"switch: {error}", file=sys.stderr)
            return 1
        net.start()
        print(net.info_network(), flush=True)
        signal.sigwait(ends)
        for client in net.stats():
            if client["type"] != "hubport":
                drops = ", ".join(f"{count} {reason}" for reason, count in client["drops"].items()) or "nothing"
                print(f"{client['name']}: {client['rx_packets']} frames out, {client['tx_packets']} in, dropped: {drops}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
