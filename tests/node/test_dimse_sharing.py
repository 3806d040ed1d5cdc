"""Associations that come at once are shared by two processes; either may die, and nobody is refused for it."""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.processes import wait_until
from pacs_node.dimse.channel import Channel
from standards.errors import RegisError, TransientError
from tests.node.conftest import NodeProcess
from tests.node.test_dimse_admission_load import echo, echoes, open_channel

MakeNode = Callable[..., NodeProcess]


def helper_of(node: NodeProcess) -> int:
    """The process id of the second process."""
    assert node.process is not None
    (child,) = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    return int(child)


def connections_of(node: NodeProcess, pid: int) -> int:
    """How many connections of the DICOM port a process has open."""
    lines = (line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:])
    of_port = {
        f"socket:[{line[9]}]" for line in lines if line[1].endswith(f":{node.dicom_port:04X}") and line[3] == "01"
    }
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(descriptor) in of_port
    return count


def threads_of(pid: int) -> int:
    """How many threads a process runs."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def open_four(node: NodeProcess) -> list[Channel]:
    """Four associations that are open at once, each in use."""
    channels = []
    for _ in range(4):
        channels.append(open_channel(node))
        assert echo(channels[-1]) == 0
    return channels


def test_of_four_at_once_each_process_serves_two(make_node: MakeNode) -> None:
    node = make_node()
    channels = open_four(node)
    assert node.process is not None
    assert (connections_of(node, node.process.pid), connections_of(node, helper_of(node))) == (2, 2)
    for channel in channels:
        channel.release()
    wait_until(lambda: connections_of(node, helper_of(node)) == 0, 120, "the second process let go of them")


def test_one_after_the_other_stays_where_the_port_is(make_node: MakeNode) -> None:
    node = make_node()
    assert node.process is not None
    first, helper = node.process.pid, helper_of(node)
    before = threads_of(first)
    for _ in range(5):
        channel = open_channel(node)
        assert echo(channel) == 0
        assert (connections_of(node, first), connections_of(node, helper)) == (1, 0)
        channel.release()
        wait_until(lambda: threads_of(first) == before, 120, "it ended")


def test_when_the_second_process_is_killed_the_first_serves_alone(make_node: MakeNode) -> None:
    node = make_node()
    channels = open_four(node)
    os.kill(helper_of(node), signal.SIGKILL)
    served = 0
    for channel in channels:
        with contextlib.suppress(RegisError):
            served += echo(channel) == 0
            channel.release()
    assert served == 2, "only those of the killed process are gone"
    for channel in open_four(node):
        channel.release()
    assert echoes(node)
    assert "dicom-helper-gone" in node.log.read_text()


def test_the_second_process_ends_with_the_first(make_node: MakeNode) -> None:
    node = make_node()
    helper = helper_of(node)
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGKILL)
    node.process.wait(60)
    wait_until(lambda: not Path(f"/proc/{helper}").exists() or _is_zombie(helper), 120, "the second process ended")


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    return True


def test_both_together_have_no_more_associations_than_allowed(make_node: MakeNode) -> None:
    node = make_node(REGIS_NODE_MAXIMUM_ASSOCIATIONS="4")
    channels = open_four(node)
    with pytest.raises(TransientError, match="association-rejected"):
        open_channel(node)
    channels.pop().release()

    def opens() -> bool:
        try:
            channels.append(open_channel(node))
        except RegisError:
            return False
        return True

    wait_until(opens, 120, "there is room again")
    for channel in channels:
        assert echo(channel) == 0
        channel.release()


def test_one_process_is_enough_where_one_is_asked_for(make_node: MakeNode) -> None:
    node = make_node(REGIS_NODE_DICOM_PROCESSES="1")
    channels = open_four(node)
    assert node.process is not None
    assert not Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    for channel in channels:
        channel.release()
