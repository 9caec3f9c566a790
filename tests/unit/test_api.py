"""Slots, commands and events of a replica (replicas/stack/api*.c) over a recording TCP."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from .api_world import (
    ABORT,
    APP,
    CLAIMED,
    CLOSE,
    CONNECT,
    CONNECTED,
    CONNECTING,
    DATAGRAM,
    DEAD,
    ERROR,
    HUP,
    KICK,
    LISTENING,
    UDP,
    Replica,
    ffi,
)


def test_listen_publishes_a_slot_and_accept_takes_connections_in_order(replica: Replica) -> None:
    listener = replica.listen()
    assert replica.flags(listener) == LISTENING
    first, second = (replica.tcb_slot(replica.arrive(0)) for _ in range(2))
    assert replica.flags(first) == CONNECTED
    assert [replica.accept_one(listener, 1), replica.accept_one(listener, 2)] == [first, second]
    assert replica.accept_one(listener, 3) == 0


def test_accept_queue_is_bounded(replica: Replica) -> None:
    """The TCP keeps the handshake half-open when the queue cannot take it."""
    replica.listen()
    replica.app_gone()
    assert replica.arrive(0) == -errno.ENOBUFS


def test_event_is_posted_once_until_the_library_clears_its_bit(replica: Replica) -> None:
    replica.listen()
    tcb = replica.arrive(0)
    slot = replica.tcb_slot(tcb)
    replica.notify(tcb)
    assert replica.drained(0) == []
    replica.subscribe(slot, 1)
    replica.notify(tcb)
    replica.notify(tcb)
    assert replica.drained(0) == [slot]
    replica.notify(tcb)
    assert replica.drained(0) == []
    replica.clear_pending(slot, 1)
    replica.notify(tcb)
    assert replica.drained(0) == [slot]


def test_every_subscribed_channel_hears_and_only_those(replica: Replica) -> None:
    listener = replica.listen()
    replica.subscribe(listener, 3)
    slot = replica.tcb_slot(replica.arrive(0))
    assert replica.drained(0) == [listener]
    assert replica.drained(1) == [listener]
    replica.subscribe(slot, 2)
    replica.notify(0)
    assert replica.drained(0) == []
    assert replica.drained(1) == [slot]


@pytest.mark.parametrize(
    "cpu", [0, 1], ids=["own core: at the end of the batch", "other core: at once"]
)
def test_a_sleeper_is_woken_exactly_once(replica: Replica, cpu: int) -> None:
    replica.run()
    listener = replica.listen()
    replica.subscribe(listener, 1)
    replica.sleep_channel(0, cpu)
    before = replica.wakes()
    replica.arrive(0)
    assert replica.wakes() - before == cpu
    replica.run()
    assert replica.wakes() - before == 1
    replica.arrive(0)
    replica.run()
    assert replica.wakes() - before == 1


def test_connect_command_makes_a_connection_and_refusal_is_an_error(replica: Replica) -> None:
    replica.command(CONNECT, CLAIMED, gen=5)
    assert (replica.flags(CLAIMED), replica.gen(CLAIMED)) == (CONNECTING, 5)
    replica.refuse(errno.EADDRINUSE)
    replica.command(CONNECT, CLAIMED + 1, gen=1)
    assert replica.flags(CLAIMED + 1) & (ERROR | HUP | DEAD) == ERROR | HUP | DEAD
    assert replica.error(CLAIMED + 1) == errno.EADDRINUSE
    replica.command(CLOSE, CLAIMED + 1)
    assert replica.flags(CLAIMED + 1) == 0


def test_connect_in_the_replicas_half_or_a_taken_slot_is_ignored(replica: Replica) -> None:
    replica.command(CONNECT, 5, gen=0)
    assert replica.flags(5) == 0
    replica.command(CONNECT, CLAIMED, gen=5)
    replica.command(CONNECT, CLAIMED, gen=6)
    assert replica.gen(CLAIMED) == 5


@pytest.mark.parametrize(
    ("tx_tail", "rx_tail", "legal"),
    [
        pytest.param(100, 50, True, id="forward and in range"),
        pytest.param(10, 0, True, id="unchanged"),
        pytest.param(10 + (2 << 20), 0, False, id="more than the ring holds unacknowledged"),
        pytest.param(9, 0, False, id="tx_tail moves back"),
        pytest.param(10, 51, False, id="consumes what was never received"),
        pytest.param(2**64 - 1, 0, False, id="tx_tail wraps"),
        pytest.param(10, 2**64 - 1, False, id="rx_tail wraps"),
    ],
)
def test_words_out_of_range_reset_that_connection_only(
    replica: Replica, tx_tail: int, rx_tail: int, legal: bool
) -> None:
    replica.listen()
    victim, other = replica.arrive(0), replica.arrive(0)
    slot = replica.tcb_slot(victim)
    replica.bounds(victim, 5, 10, 50, 0)
    replica.words(slot, tx_tail, rx_tail)
    replica.command(KICK, slot)
    assert replica.tcb_kicks(victim) == int(legal)
    assert replica.tcb_aborted(victim) == (0 if legal else errno.ECONNRESET)
    assert replica.flags(replica.tcb_slot(other)) == CONNECTED


def test_garbage_commands_do_nothing(replica: Replica) -> None:
    listener = replica.listen()
    tcb = replica.arrive(0)
    slot = replica.tcb_slot(tcb)
    for op in (0, KICK, CLOSE, ABORT, 200):
        replica.command(op, 0, gen=0)
        replica.command(op, 2**32 - 1, gen=0)
        replica.command(op, slot, gen=replica.gen(slot) + 1)
        replica.command(op, 60000, gen=0)
    assert replica.flags(slot) == CONNECTED
    assert replica.flags(listener) == LISTENING
    assert replica.tcb_kicks(tcb) == 0


def test_close_hands_over_what_was_written_and_frees_the_slot(replica: Replica) -> None:
    replica.listen()
    tcb = replica.arrive(0)
    slot = replica.tcb_slot(tcb)
    replica.bounds(tcb, 0, 0, 0, 0)
    replica.words(slot, 64, 0)
    gen = replica.gen(slot)
    replica.command(CLOSE, slot)
    assert (replica.tcb_kicks(tcb), replica.tcb_closed(tcb)) == (1, 1)
    assert (replica.flags(slot), replica.gen(slot)) == (0, gen + 1)
    replica.command(CLOSE, slot, gen=gen)
    assert replica.tcb_closed(tcb) == 1


def test_released_slots_are_reused_last_in_first_out(replica: Replica) -> None:
    """Their pages are warm."""
    replica.listen()
    slots = [replica.tcb_slot(replica.arrive(0)) for _ in range(3)]
    for slot in slots:
        replica.command(CLOSE, slot)
    assert replica.tcb_slot(replica.arrive(0)) == slots[-1]


def test_closing_a_listener_resets_what_nobody_accepted(replica: Replica) -> None:
    listener = replica.listen()
    taken, waiting = replica.arrive(0), replica.arrive(0)
    waiting_slot = replica.tcb_slot(waiting)
    replica.accept_one(listener, 9)
    replica.command(CLOSE, listener)
    assert replica.tcb_aborted(waiting) == errno.ECONNRESET
    assert replica.tcb_aborted(taken) == 0
    assert replica.flags(listener) == 0
    assert replica.flags(waiting_slot) == 0
    assert replica.live() == 1


def test_successor_resets_connections_and_reinstalls_the_listener(replica: Replica) -> None:
    """Stateless recovery, paper 6.3.6."""
    listener = replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    replica.command(CONNECT, CLAIMED + 7, gen=3)
    replica.subscribe(slot, 1)
    next_life = replica.reborn()
    for dead in (slot, CLAIMED + 7):
        assert next_life.flags(dead) & (ERROR | HUP | DEAD) == ERROR | HUP | DEAD
        assert next_life.error(dead) == errno.ECONNRESET
        assert not next_life.flags(dead) & CONNECTING
    assert next_life.listen(listener) == listener
    assert next_life.flags(listener) == LISTENING
    fresh = next_life.tcb_slot(next_life.arrive(0))
    assert fresh not in (slot, listener)
    next_life.command(CLOSE, slot)
    assert next_life.flags(slot) == 0
    next_life.command(CLOSE, CLAIMED + 7)
    assert next_life.live() == 2


def test_listener_whose_application_closed_it_during_the_outage_is_freed(replica: Replica) -> None:
    listener = replica.listen()
    next_life = replica.reborn()
    next_life.lib.api_start_world(next_life.world)
    assert next_life.flags(listener) == 0


def test_application_gone_closes_everything(replica: Replica) -> None:
    replica.listen()
    tcbs = [replica.arrive(0) for _ in range(3)]
    replica.app_gone()
    assert replica.live() == 0
    assert all(replica.tcb_aborted(t) or replica.tcb_closed(t) for t in tcbs)


# ---- UDP ----


def test_udp_opens_a_port_that_the_registry_gives_the_application(replica: Replica) -> None:
    """L9: what names the slot's port is the application's word, who holds it is neatd's."""
    replica.port_entry(0, 53, APP, 1)
    replica.udp_words(CLAIMED, 0, 53)
    replica.command_push(0, UDP, 0, CLAIMED)
    replica.run()
    assert replica.flags(CLAIMED) == DATAGRAM
    # What was written before the slot was taken up is not lost.
    assert replica.command_pending(CLAIMED) == 0 and replica.udp_kicks(0) == 1


def test_udp_opens_where_it_is_not_at_home(replica: Replica) -> None:
    replica.port_entry(0, 53, APP, 2)
    replica.udp_words(CLAIMED, 0, 53)
    replica.command_push(0, UDP, 0, CLAIMED)
    replica.run()
    assert replica.flags(CLAIMED) == DATAGRAM


@pytest.mark.parametrize(
    ("owner", "port", "code"), [(8, 53, errno.EACCES), (APP, 54, errno.EADDRNOTAVAIL)]
)
def test_udp_of_somebody_else_is_refused(
    replica: Replica, owner: int, port: int, code: int
) -> None:
    replica.port_entry(0, 53, owner, 1)
    replica.udp_words(CLAIMED, 0, port)
    replica.command_push(0, UDP, 0, CLAIMED)
    replica.run()
    assert replica.flags(CLAIMED) == ERROR | HUP | DEAD and replica.error(CLAIMED) == code
    assert replica.udps() == 0


def test_udp_port_of_several_applications(replica: Replica) -> None:
    replica.port_entry(0, 53, 0xFFFFFFFF, 1)
    replica.udp_words(CLAIMED, 0, 53)
    replica.command_push(0, UDP, 0, CLAIMED)
    replica.run()
    assert replica.flags(CLAIMED) == DATAGRAM


def test_udp_commands_reach_the_socket(replica: Replica) -> None:
    replica.port_entry(0, 53, APP, 1)
    replica.udp_words(CLAIMED, 0, 53)
    replica.command_push(0, UDP, 0, CLAIMED)
    replica.command_push(0, KICK, 0, CLAIMED)
    replica.command_push(0, CLOSE, 0, CLAIMED)
    replica.run()
    assert replica.udp_kicks(0) == 3 and replica.udp_closes(0) == 1
    assert replica.flags(CLAIMED) == 0 and replica.live() == 0


def test_udp_survives_the_death_of_its_replica(replica: Replica) -> None:
    replica.port_entry(0, 53, APP, 1)
    replica.udp_words(CLAIMED, 0, 53)
    replica.command_push(0, UDP, 0, CLAIMED)
    replica.run()
    reborn = Replica(replica.lib, replica.lib.world_reborn(replica.world))
    assert reborn.flags(CLAIMED) == DATAGRAM and reborn.live() == 1
    # Datagrams that waited go out, but not before all receivers are there (R_START).
    assert reborn.udp_laters(0) == 1 and reborn.udp_kicks(0) == 0


def test_udp_whose_port_was_given_away_meanwhile_is_reset(replica: Replica) -> None:
    replica.port_entry(0, 53, APP, 1)
    replica.udp_words(CLAIMED, 0, 53)
    replica.command_push(0, UDP, 0, CLAIMED)
    replica.run()
    replica.port_entry(0, 53, 8, 1)
    reborn = Replica(replica.lib, replica.lib.world_reborn(replica.world))
    assert reborn.flags(CLAIMED) & DEAD and reborn.udps() == 0


# ---- channels come and go with processes ----


@pytest.mark.parametrize("number", [5, 62, 63, 255])
def test_a_forked_child_opens_its_channel_by_itself(replica: Replica, number: int) -> None:
    listener = replica.listen()
    replica.set_open(number, 1)
    replica.command(CONNECT, CLAIMED, gen=5, channel=number)
    assert replica.flags(CLAIMED) == CONNECTING
    replica.subscribe(listener, 1 << min(number, 63))
    replica.arrive(0)
    assert replica.drained(number) == [listener]


@pytest.mark.parametrize("number", [5, 63, 255])
def test_an_event_finds_a_channel_that_was_opened_during_the_batch(
    replica: Replica, number: int
) -> None:
    listener = replica.listen()
    replica.run()
    replica.set_open(number, 7)
    replica.subscribe(listener, 1 << min(number, 63))
    replica.arrive(0)
    assert replica.drained(number) == [listener]
    assert replica.nopen() == 3
    replica.run()
    assert replica.nopen() == 3


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("now", [0, 1, 2])
def test_options_of_a_connection_are_not_confused_with_those_of_the_last_one_in_its_slot(
    replica: Replica, before: int, now: int
) -> None:
    replica.listen()
    first = replica.arrive(0)
    slot = replica.tcb_slot(first)
    for _ in range(before):
        replica.set_options(slot)
    replica.command(KICK, slot)
    assert bool(replica.tcb_options(first)) == bool(before)
    replica.command(CLOSE, slot)
    second = replica.arrive(0)
    assert replica.tcb_slot(second) == slot
    for _ in range(now):
        replica.set_options(slot)
    replica.command(KICK, slot)
    assert bool(replica.tcb_options(second)) == bool(now)


def test_a_kick_that_overtook_its_connect_does_not_keep_later_ones_away(replica: Replica) -> None:
    """By another channel: the connect() of a parent, the setsockopt() of its child."""
    replica.kick_flag(CLAIMED)
    replica.set_options(CLAIMED)
    replica.command(KICK, CLAIMED, gen=0, channel=1)
    replica.command(CONNECT, CLAIMED, gen=0)
    assert replica.flags(CLAIMED) == CONNECTING
    assert replica.command_pending(CLAIMED) == 0


def test_a_kick_for_the_last_connection_of_a_slot_does_not_keep_those_of_the_next_away(
    replica: Replica,
) -> None:
    """A thread was stopped between its recv() and the kick; meanwhile another closed the socket."""
    replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    gen = replica.gen(slot)
    replica.command(CLOSE, slot)
    second = replica.arrive(0)
    assert replica.tcb_slot(second) == slot
    replica.kick_flag(slot)
    replica.command(KICK, slot, gen=gen)
    assert (replica.command_pending(slot), replica.tcb_kicks(second)) == (0, 1)


@pytest.mark.parametrize("opened", [2, 3], ids=["killed", "exec"])
def test_a_process_that_ended_before_its_kick_does_not_keep_those_of_others_away(
    replica: Replica, opened: int
) -> None:
    """Between flag and command: whoever has the connection, too, sees the flag and sends none."""
    replica.listen()
    arrived = replica.arrive(0)
    slot = replica.tcb_slot(arrived)
    replica.set_open(1, 1)
    replica.run()
    replica.kick_flag(slot)
    replica.set_open(1, opened)
    replica.run()
    assert (replica.command_pending(slot), replica.tcb_kicks(arrived)) == (0, 1)


def test_a_close_that_overtook_its_connect_ends_it(replica: Replica) -> None:
    """By another channel: nobody is left who would close that connection."""
    replica.command(CLOSE, CLAIMED, gen=0, channel=1)
    replica.command(CONNECT, CLAIMED, gen=0)
    assert (replica.flags(CLAIMED), replica.live()) == (0, 0)
    replica.command(CLOSE, CLAIMED, gen=0, channel=1)
    assert replica.gen(CLAIMED) == 1
    replica.command(CONNECT, CLAIMED, gen=1)
    assert replica.flags(CLAIMED) == CONNECTING


def test_a_second_queue_entry_of_a_connection_is_not_taken_for_the_next_one_in_its_slot(
    replica: Replica,
) -> None:
    """The first listener's queue names a slot in which a connection of the second one waits."""
    listener = replica.listen()
    replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    assert replica.accept_one(listener, 0) == slot
    replica.set_open(1, 2)  # its process died, as far as is known: the connection is queued again
    replica.run()
    assert replica.own(slot, replica.gen(slot), 9)  # it lives, and goes on
    replica.command(CLOSE, slot)
    second = replica.arrive(1)
    assert replica.tcb_slot(second) == slot
    replica.command(CLOSE, listener)
    assert replica.tcb_aborted(second) == 0
    assert replica.flags(slot) == CONNECTED


def test_the_first_queue_entry_of_a_connection_does_not_take_the_next_one_in_its_slot(
    replica: Replica,
) -> None:
    """Whose accept() took the first entry goes on when that connection has ended."""
    listener = replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    gen = replica.gen(slot)
    assert replica.accept_one(listener, 0) == slot
    replica.set_open(1, 2)  # its process died, as far as is known: the connection is queued again
    replica.run()
    assert replica.accept_one(listener, 8) == slot
    replica.command(CLOSE, slot)
    assert replica.tcb_slot(replica.arrive(0)) == slot
    assert not replica.own(slot, gen, 9)
    assert replica.accept_one(listener, 10) == slot and replica.owner(slot) == 10


def test_what_tcp_info_says_of_a_connection_is_not_of_the_last_one_in_its_slot(
    replica: Replica,
) -> None:
    replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    replica.set_info(slot, 5)
    replica.command(CLOSE, slot)
    assert replica.tcb_slot(replica.arrive(0)) == slot
    assert replica.info(slot) == 0
    replica.set_info(CLAIMED, 5)
    replica.command(CONNECT, CLAIMED, gen=0)
    assert replica.info(CLAIMED) == 0


def test_a_listener_is_not_taken_for_the_next_one_in_its_slot(replica: Replica) -> None:
    """It was closed and its slot went to another; neatd had asked for a longer queue before."""
    listener = replica.listen()
    gen = replica.gen(listener)
    assert replica.listen_again(listener, gen) == 0
    replica.command(CLOSE, listener)
    assert replica.listen() == listener
    assert replica.listen_again(listener, gen) == -errno.ESTALE


def test_last_words_of_a_dead_process_are_done(replica: Replica) -> None:
    replica.listen()
    tcbs = [replica.arrive(0) for _ in range(60)]
    slots = [replica.tcb_slot(t) for t in tcbs]
    for slot in slots:
        replica.command_push(1, CLOSE, replica.gen(slot), slot)
    replica.set_open(1, 2)
    replica.look()
    assert all(replica.tcb_closed(t) for t in tcbs)
    assert (replica.forgotten(), replica.nopen()) == (1, 1)


@pytest.mark.parametrize("number", [5, 255])
def test_a_process_that_came_asked_and_died_between_two_looks_is_heard(
    replica: Replica, number: int
) -> None:
    """A child that sends once and ends: its channel is closed before the replica saw it open."""
    replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    replica.set_open(number, 7)
    replica.command_push(number, CLOSE, replica.gen(slot), slot)
    replica.set_open(number, 8)
    replica.run()
    assert (replica.flags(slot), replica.nopen()) == (0, 2)
    replica.run()
    assert replica.forgotten() == 1


def test_the_next_process_in_an_entry_goes_on_with_its_rings(replica: Replica) -> None:
    replica.listen()
    first, second = (replica.tcb_slot(replica.arrive(0)) for _ in range(2))
    replica.command(CLOSE, first, channel=1)
    replica.set_open(1, 2)
    replica.look()
    replica.set_open(1, 3)
    replica.command(CLOSE, second, channel=1)
    assert (replica.flags(first), replica.flags(second)) == (0, 0)
    replica.set_open(1, 5)  # exec: the same process, another image
    replica.run()
    assert (replica.forgotten(), replica.nopen()) == (2, 2)


def test_commands_wait_until_the_listeners_are_back(replica: Replica) -> None:
    """A process dies while its replica is being replaced: its last words come after R_START."""
    listener = replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    next_life = replica.reborn()
    next_life.command_push(1, CLOSE, replica.gen(slot), slot)
    next_life.set_open(1, 2)
    next_life.look()
    assert next_life.flags(slot) & DEAD
    assert next_life.listen(listener) == listener
    next_life.lib.api_start_world(next_life.world)
    assert (next_life.flags(slot), next_life.nopen()) == (0, 1)


def test_a_successor_hears_last_words_that_its_predecessor_did_not(replica: Replica) -> None:
    replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    replica.command_push(1, CLOSE, replica.gen(slot), slot)
    replica.set_open(1, 2)
    next_life = replica.reborn()
    next_life.lib.api_start_world(next_life.world)
    assert (next_life.flags(slot), next_life.nopen()) == (0, 1)


def test_a_hostile_table_of_channels_is_bounded(replica: Replica) -> None:
    for gen in (0xFFFFFFFF, 0, 1, 2**31 + 1):
        for number in range(256):
            replica.set_open(number, gen)
        replica.run()
        assert replica.nopen() == (256 if gen & 1 else 0)
    replica.app_gone()
    replica.set_open(3, 77)
    replica.run()
    assert replica.nopen() == 0


def test_a_connection_whose_taker_died_is_queued_again(replica: Replica) -> None:
    """Killed between taking the queue's entry and making the connection its own (contract L1)."""
    listener = replica.listen()
    lost, kept = (replica.tcb_slot(replica.arrive(0)) for _ in range(2))
    assert replica.accept_one(listener, 0) == lost
    assert replica.accept_one(listener, 7) == kept
    replica.set_open(1, 2)
    replica.run()
    assert replica.accept_one(listener, 8) == lost
    assert replica.accept_one(listener, 9) == 0


def test_a_dead_connection_whose_taker_died_is_freed(replica: Replica) -> None:
    """Nobody else will ever close it. One whose taker lives is skipped by him (neat_own())."""
    listener = replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    gen = replica.gen(slot)
    assert replica.accept_one(listener, 0) == slot
    replica.command(ABORT, slot)
    assert replica.flags(slot) & DEAD
    replica.set_open(1, 2)
    replica.run()
    assert replica.flags(slot) == 0 and replica.gen(slot) == gen + 1


# ---- draining (contract L8) ----

OPEN, CLOSING, ENDED = 1, 2, 3


def door(replica: Replica) -> tuple[int, int]:
    """(round, state)."""
    word = int(replica.door())
    return word >> 8, word & 0xFF


def listener(replica: Replica) -> int:
    slot, gen = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    assert replica.listen_on(slot, gen) == 0
    return int(slot[0])


def reborn(lib: Any, replica: Replica) -> Replica:
    successor = Replica(lib, replica.world_reborn())
    successor.api_start_world()
    return successor


def test_with_listeners_only_the_door_can_be_shut(replica: Replica) -> None:
    listener(replica)
    assert door(replica) == (0, OPEN)
    assert replica.shut() == 1 and door(replica) == (0, CLOSING)
    replica.end()
    assert door(replica) == (0, ENDED)


def test_whatever_is_left_keeps_the_door_open(replica: Replica) -> None:
    slot = listener(replica)
    replica.tcp_busy(1)  # an orphan, a half-open connection, TIME_WAIT
    assert replica.shut() == 0
    replica.tcp_busy(0)
    assert replica.arrive(0) >= 0  # nobody has accepted it yet
    assert replica.shut() == 0 and door(replica) == (0, OPEN)
    born = replica.accept_one(slot, 9)
    assert replica.shut() == 0
    replica.command_push(0, CLOSE, replica.gen(born), born)
    replica.run()
    assert replica.shut() == 1


def test_a_connect_before_the_door_was_shut_is_served(replica: Replica) -> None:
    replica.connect_push(0, 0, CLAIMED)
    assert replica.shut() == 0 and door(replica) == (0, OPEN)
    replica.run()
    assert replica.flags(CLAIMED) == CONNECTING
    assert replica.shut() == 0, "it is a connection now"


def test_a_connect_after_that_is_nobodys_for_ever(lib: Any, replica: Replica) -> None:
    """Its author saw the door and went elsewhere: no later life may obey it."""
    assert replica.shut() == 1
    replica.connect_push(0, 0, CLAIMED)
    replica.end()
    successor = reborn(lib, replica)
    assert door(successor) == (1, OPEN)
    successor.connect_push(1, 0, CLAIMED + 1)
    successor.run()
    assert successor.flags(CLAIMED) == 0
    assert successor.flags(CLAIMED + 1) == CONNECTING


def test_when_the_instance_ends_every_connection_is_reset(replica: Replica) -> None:
    """Accepted, waiting, or only asked for; listeners stay as they are."""
    slot = listener(replica)
    born, waiting = (replica.tcb_slot(replica.arrive(0)) for _ in range(2))
    assert replica.accept_one(slot, 9) == born
    replica.connect_push(0, 0, CLAIMED)
    replica.over()
    assert door(replica) == (0, ENDED)
    for one in (born, waiting, CLAIMED):
        assert replica.flags(one) & (DEAD | ERROR | CONNECTING) == DEAD | ERROR
    assert not replica.flags(slot) & DEAD


def test_killed_with_the_door_half_shut(lib: Any, replica: Replica) -> None:
    """The same life goes on: who waited at the door is served."""
    assert replica.shut() == 1
    replica.connect_push(0, 0, CLAIMED)
    successor = reborn(lib, replica)
    assert door(successor) == (0, OPEN)
    successor.run()
    assert successor.flags(CLAIMED) == CONNECTING


def test_a_channel_that_was_opened_a_moment_ago_counts(replica: Replica) -> None:
    replica.set_open(5, 1)
    replica.command_push(5, CONNECT, 0, CLAIMED)
    assert replica.shut() == 0
    replica.run()
    assert replica.flags(CLAIMED) == CONNECTING


def test_a_nudge_reaches_every_process_once(replica: Replica) -> None:
    before = [int(replica.overflow(i)) for i in range(2)]
    replica.run()
    wakes = replica.wakes()
    replica.sleep_channel(0, 0)
    replica.sleep_channel(1, 1)
    replica.nudge()
    assert [int(replica.overflow(i)) for i in range(2)] == [n + 1 for n in before]
    assert replica.wakes() == wakes + 2


# ---- a replica that ran wild wrote over what it shares with programs ----

CMD_HEAD, CMD_TAIL, EV_TAIL, DOOR = range(4)
GARBAGE = 0xDEAD_BEEF_0BAD_F00D


@pytest.mark.parametrize("value", [GARBAGE, 5, 4096 + 2, 1 << 39], ids=hex)
def test_the_replicas_index_is_stored_again_and_slots_are_looked_at(
    replica: Replica, value: int
) -> None:
    """Programs wait for it; and what was asked while it was wrong may have been lost."""
    replica.listen()
    tcb = replica.arrive(0)
    replica.bounds(tcb, 0, 0, 0, 0)
    replica.command(KICK, replica.tcb_slot(tcb))
    head, kicks = replica.index_of(0, CMD_HEAD), replica.tcb_kicks(tcb)
    replica.overwrite(0, CMD_HEAD, value)
    assert replica.lib.pending(replica.world)
    replica.run()
    assert replica.index_of(0, CMD_HEAD) == head
    assert replica.tcb_kicks(tcb) == kicks + 1


def test_a_program_that_spoils_the_index_all_the_time_costs_little(replica: Replica) -> None:
    replica.listen()
    tcb = replica.arrive(0)
    replica.bounds(tcb, 0, 0, 0, 0)
    replica.later(1_000_000)
    for _ in range(50):
        replica.overwrite(0, CMD_HEAD, GARBAGE)
        replica.run()
    assert replica.tcb_kicks(tcb) == 1
    replica.later(1_000_000)
    replica.run()
    assert replica.tcb_kicks(tcb) == 2
    replica.run()
    assert replica.tcb_kicks(tcb) == 2 and not replica.lib.pending(replica.world)


@pytest.mark.parametrize("what", [CMD_HEAD, CMD_TAIL])
def test_a_successor_finds_indices_that_make_no_sense(replica: Replica, what: int) -> None:
    replica.listen()
    slot = replica.tcb_slot(replica.arrive(0))
    replica.overwrite(0, what, GARBAGE)
    successor = replica.reborn()
    successor.lib.api_start_world(successor.world)
    successor.run()
    assert successor.index_of(0, CMD_HEAD) == successor.index_of(0, CMD_TAIL)
    successor.command(CLOSE, slot)
    assert successor.flags(slot) == 0


def test_old_connects_that_are_seen_again_are_dropped(replica: Replica) -> None:
    replica.command(CONNECT, CLAIMED, gen=0)
    replica.command(CLOSE, CLAIMED)
    assert (replica.flags(CLAIMED), replica.gen(CLAIMED)) == (0, 1)
    replica.overwrite(0, CMD_TAIL, replica.index_of(0, CMD_TAIL) + 4095)
    replica.run()
    replica.command(CONNECT, CLAIMED, gen=0)
    assert (replica.flags(CLAIMED), replica.gen(CLAIMED)) == (0, 1)


def test_events_go_on_behind_an_index_that_makes_no_sense(replica: Replica) -> None:
    replica.listen()
    tcb = replica.arrive(0)
    slot = replica.tcb_slot(tcb)
    replica.subscribe(slot, 1)
    overflow = replica.overflow(0)
    replica.overwrite(0, EV_TAIL, GARBAGE)
    replica.notify(tcb)
    assert replica.drained(0) == [slot]
    assert replica.overflow(0) == overflow + 1  # what was on the ring is gone: look at all


@pytest.mark.parametrize("value", [0, 0x105, GARBAGE & 0xFFFFFFFF], ids=hex)
def test_the_door_is_stored_again(replica: Replica, value: int) -> None:
    """connect() would wait at it for ever."""
    before = replica.door()
    replica.overwrite(0, DOOR, value)
    assert replica.lib.pending(replica.world)
    replica.run()
    assert replica.door() == before
