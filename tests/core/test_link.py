"""Link state: S10, S19, S55."""

import pytest


def frame(i, size=60):
    return i.to_bytes(4, "big") * (size // 4)


def test_s55_both_sides_are_told(link):
    a, b = link()
    a.set_link(False)
    assert (a.link_changes, b.link_changes) == (1, 1)
    assert (a.link_down, b.link_down) == (True, False)
    a.set_link(True)
    assert (a.link_changes, b.link_changes) == (2, 2)


def test_s55_a_nic_behind_the_client_loses_its_link_too(link):
    backend, nic = link(b={"is_nic": True})
    backend.set_link(False)
    assert nic.link_down
    backend.set_link(True)
    assert not nic.link_down


def test_s55_the_backend_of_a_nic_keeps_its_own_link(link):
    backend, nic = link(b={"is_nic": True})
    nic.set_link(False)
    assert (nic.link_down, backend.link_down) == (True, False)


def test_s19_going_down_drops_what_waits_for_the_client(link):
    a, b = link(b={"capacity": 0})
    a.send([frame(0)] * 3)
    b.set_link(False)
    assert b.queued == 0
    assert b.stats()["drops"] == {"link-down": 3}
    b.room(None)
    b.set_link(True)
    assert b.recv() == []


def test_s55_what_waits_for_a_nic_goes_when_its_backend_loses_the_link(link):
    backend, nic = link(b={"is_nic": True, "capacity": 0})
    backend.send([frame(0)] * 3)
    backend.set_link(False)
    assert nic.stats()["drops"] == {"link-down": 3}


def test_what_waits_for_the_peer_survives_the_senders_link(link):
    a, b = link(b={"capacity": 0})
    a.send([frame(0)] * 3)
    a.set_link(False)
    b.room(None)
    assert b.recv() == [frame(0)] * 3


@pytest.mark.parametrize("down", ["sender", "receiver"])
def test_without_a_link_a_sender_with_flow_control_is_not_held_up(link, down):
    a, b = link(a={"flow_control": True}, b={"capacity": 0})
    (a if down == "sender" else b).set_link(False)
    assert a.send([frame(0)]) == 1
    assert not a.blocked


def test_link_state_of_a_closed_client_can_be_set(link):
    a, b = link()
    a.close()
    a.set_link(False)
    a.set_link(True)
    assert b.link_changes == 0


def test_a_client_without_a_peer_has_a_link_of_its_own(make):
    a, b = make(), make()
    a.set_link(False)
    assert (a.link_down, a.link_changes) == (True, 1)
    a.pair(b)
    a.send([frame(0)])
    assert a.stats()["drops"] == {"link-down": 1}
