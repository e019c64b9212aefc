from qnet._fastpath import Context, NetClient

class Hub:
    context: Context
    hub_id: int
    def __init__(self, context: Context, hub_id: int) -> None: ...
    @property
    def ports(self) -> list[HubPort]: ...

class HubPort(NetClient):
    hub: Hub
    def __init__(self, context: Context, hub: Hub, name: str = "") -> None: ...
