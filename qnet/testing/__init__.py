"""What tests and benches of networks and of VMMs need: clients to drive from Python, sources and sinks, and guests without a CPU."""

from qnet._client import live
from qnet.testing._frames import TAKES
from qnet.testing._nodes import LoopBack, Sink, Source
from qnet.testing._port import Port
from qnet.testing._probes import DeviceProbe, FdProbe, Gate, PollProbe
from qnet.testing.guest_e1000 import E1000Guest
from qnet.testing.netns import Namespace

__all__ = ["TAKES", "DeviceProbe", "E1000Guest", "FdProbe", "Gate", "LoopBack", "Namespace", "PollProbe", "Port", "Sink", "Source", "live"]
