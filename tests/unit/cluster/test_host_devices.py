"""A host's devices as workers: what each gets, who joins, and how their processes are kept up and ended."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from hyperlane import working
from hyperlane.cluster.devices import restarts
from hyperlane.cluster.devices.enrolment import enrol
from hyperlane.cluster.devices.restarts import DEATHS, DEATHS_WITHIN_S, LONGEST_WAIT_S, wait_s
from hyperlane.cluster.devices.spots import Spot, spots, thread_shares
from hyperlane.cluster.devices.supervisor import Supervisor, WorkerCommand
from hyperlane.cluster.trust import opening
from hyperlane.config import Paths, WorkerConfig
from hyperlane.core import Address
from hyperlane.errors import ClusterError, ConfigError, JoinRefused, NotTrusted
from hyperlane.stage import providers
from hyperlane.testing.toy_cluster import children

HERE = Address("127.0.0.1", 7420)
TOY = """
import os, signal, sys, threading, time
from hyperlane.cluster.announce import Announcement, when_parent_ends
from hyperlane.core import Address
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
mode = os.environ.get("TOY " + flags["--name"].partition("/")[2], "")
if mode.startswith("exit"):
    sys.exit(int(mode[4:]))
ended = threading.Event()
when_parent_ends(lambda: os._exit(0))
if mode == "stays":
    signal.signal(signal.SIGTERM, lambda *_: print("leaves later", file=sys.stderr, flush=True))
else:
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
Announcement(flags["--name"], Address.parse(flags["--listen"])).print()
if mode == "dies":
    sys.exit("its last word")
while not ended.wait(0.05):
    pass
print("has left", file=sys.stderr, flush=True)
"""


def made(*devices: str, state: Path = Path("/state"), listen: Address = HERE, threads: int = 8) -> tuple[Spot, ...]:
    return spots(devices, "box", listen, threads, state / "devices")


# --- what each gets ------------------------------------------------------------------------------------------


def test_each_device_has_a_name_two_ports_and_a_state_directory_of_its_own():
    found = made("cuda:0", "cuda:2", "cpu")
    assert [spot.name for spot in found] == ["box/cuda:0", "box/cuda:2", "box/cpu"]
    assert [spot.listen.port for spot in found] == [7420, 7422, 7424]
    assert [spot.state.as_posix() for spot in found] == [
        "/state/devices/cuda-0",
        "/state/devices/cuda-2",
        "/state/devices/cpu",
    ]


def test_a_device_is_the_same_node_whatever_is_beside_it():
    alone, beside = made("cuda:2")[0], made("cuda:0", "cuda:2")[1]
    assert (alone.name, alone.state) == (beside.name, beside.state)


def test_the_processor_may_be_there_several_times():
    assert [spot.label for spot in made("cpu", "cpu", "cpu")] == ["cpu", "cpu-2", "cpu-3"]


def test_any_port_stays_any():
    assert {spot.listen.port for spot in made("cpu", "cpu", listen=Address("::", 0))} == {0}


def test_ports_beyond_the_last_one_are_refused():
    with pytest.raises(ConfigError, match="begin lower"):
        made("cpu", "cpu", listen=Address("::", 65534))


@pytest.mark.parametrize(
    ("devices", "threads", "shares"),
    [
        (("cuda:0", "cuda:1"), 8, (4, 4)),
        (("cpu", "cpu"), 8, (4, 4)),
        (("cpu", "cpu"), 5, (3, 2)),
        (("cuda:0", "cpu", "cuda:1", "cpu"), 8, (1, 3, 1, 3)),
        (("cpu", "cpu", "cpu"), 1, (1, 1, 1)),
        (("cuda:0", "cpu"), 1, (1, 1)),
        (("cuda:0",), 16, (16,)),
    ],
)
def test_threads_are_divided_among_those_that_compute_with_them(devices, threads, shares):
    assert thread_shares(devices, threads) == shares


def test_what_dies_is_started_again_later_and_later_and_then_left():
    assert wait_s((), 1000.0) == 1.0
    waits = [wait_s((1000.0,) * count, 1000.0) for count in range(1, DEATHS)]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_S
    assert wait_s((1000.0,) * DEATHS, 1000.0) is None
    assert wait_s((1000.0,) * DEATHS, 1000.0 + DEATHS_WITHIN_S) == 1.0


def test_a_worker_is_started_for_its_own_device_with_the_hosts_cache_and_its_own_state(tmp_path):
    (spot,) = made("cuda:2", state=tmp_path)
    told = WorkerCommand(("hyperlane", "worker"), Paths(tmp_path / "cache", tmp_path, "m0"), 6 << 30, 30.0)
    words = told.arguments(spot)
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[:3] == ["hyperlane", "worker", "--announce"]
    assert (flags["--device"], flags["--name"], flags["--threads"]) == ("cuda:2", "box/cuda:2", "8")
    assert (flags["--listen"], flags["--memory"]) == ("127.0.0.1:7420", str(6 << 30))
    places = {name: value for name, value in told.environ(spot).items() if name.startswith("HYPERLANE_PATHS_")}
    assert places == {
        "HYPERLANE_PATHS_CACHE": str(tmp_path / "cache"),
        "HYPERLANE_PATHS_STATE": str(spot.state),
        "HYPERLANE_PATHS_MACHINE": "m0",
    }


# --- which are lent ------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path) -> Paths:
    return Paths.under(tmp_path)


def lent(paths: Paths, *gpus: str, **settings: object) -> tuple[str, ...]:
    return working.devices_to_lend(WorkerConfig(paths=paths, **settings), lambda: gpus)


def test_several_gpus_get_a_worker_each_and_one_does_without_a_supervisor(paths):
    assert lent(paths, "cuda:0", "cuda:1") == ("cuda:0", "cuda:1")
    assert lent(paths, "cuda:0") == ()
    assert lent(paths) == ()


@pytest.mark.parametrize("settings", [{"device": "cuda:1"}, {"announce": True}, {"credentials": "none"}])
def test_who_names_one_device_is_one_worker(paths, settings):
    assert lent(paths, "cuda:0", "cuda:1", **settings) == ()


def test_a_machine_that_joined_as_one_node_stays_one_and_is_told_how_to_change(paths, capsys):
    folder = opening.trust_folder(paths) / "worker"
    folder.mkdir(parents=True)
    (folder / opening.CERTIFICATE).write_text("")
    assert lent(paths, "cuda:0", "cuda:1") == ()
    assert "--devices all --join TOKEN" in capsys.readouterr().err


def test_a_worker_that_a_supervisor_started_looks_at_no_devices(paths, monkeypatch):
    monkeypatch.setattr(providers, "check_runtime", lambda installed=None: "onnxruntime 1.31.1")
    assert lent(paths, devices="cpu,cpu", announce=True) == ()
    assert lent(paths, devices="cpu,cpu") == ("cpu", "cpu")


def test_one_device_and_several_contradict_each_other(paths):
    with pytest.raises(ConfigError, match="one of the two"):
        lent(paths, devices="cpu", device="cpu")


# --- who joins -----------------------------------------------------------------------------------------------


def trusting(joined: set[str], uses: int):
    """A door that lets so many in; who is in needs it no more."""

    def trust_of(config: WorkerConfig):
        label = config.name.partition("/")[2]
        if config.join and label not in joined:
            if len(joined) >= uses:
                raise JoinRefused("the token is used up")
            joined.add(label)
        return object() if label in joined else None

    return trust_of


def test_every_device_joins_by_itself_with_the_same_token(paths):
    joined: set[str] = set()
    devices = made("cuda:0", "cuda:1", state=paths.state)
    assert enrol(WorkerConfig(paths=paths, join="hl1x"), devices, trusting(joined, 2))
    assert joined == {"cuda:0", "cuda:1"}
    assert enrol(WorkerConfig(paths=paths), devices, trusting(joined, 2)), "the next start needs no token"


def test_a_token_with_too_few_uses_says_how_many_are_needed(paths):
    devices = made("cuda:0", "cuda:1", "cuda:2", state=paths.state)
    with pytest.raises(JoinRefused, match=r"cuda:1: .* used up; cuda:0 joined .* --uses 2"):
        enrol(WorkerConfig(paths=paths, join="hl1x"), devices, trusting(set(), 1))


def test_devices_of_one_host_are_in_the_cluster_all_or_none(paths):
    devices = made("cuda:0", "cuda:1", state=paths.state)
    assert not enrol(WorkerConfig(paths=paths), devices, trusting(set(), 9))
    with pytest.raises(NotTrusted, match=r"cuda:0 belong to a cluster, cuda:1 to none"):
        enrol(WorkerConfig(paths=paths), devices, trusting({"cuda:0"}, 9))


def test_the_doctor_finds_the_cluster_that_the_devices_have_joined(paths):
    assert opening.known_trust_folder(paths) == opening.trust_folder(paths)
    for label in ("cuda-1", "cuda-0"):
        folder = paths.devices / label / "trust" / "worker"
        folder.mkdir(parents=True)
        (folder / opening.CERTIFICATE).write_text("")
    assert opening.known_trust_folder(paths) == paths.devices / "cuda-0" / "trust"
    (opening.trust_folder(paths) / "authority").mkdir(parents=True)
    assert opening.known_trust_folder(paths) == opening.trust_folder(paths), "a head is first of all that"


# --- processes -----------------------------------------------------------------------------------------------


class Run:
    """A supervisor over toy workers; `then` does something when a line has these words, once each."""

    def __init__(self, tmp_path: Path) -> None:
        self.lines: list[str] = []
        self.paths = Paths.under(tmp_path)
        self._then: list[tuple[str, int]] = []

    def then(self, words: str, number: int) -> Run:
        """Get that signal when a line has these words."""
        self._then.append((words, number))
        return self

    def run(self, *devices: str) -> Run:
        places = made(*devices, state=self.paths.state)
        command = WorkerCommand((sys.executable, "-c", TOY, "worker", "--announce"), self.paths, None, 30.0)
        Supervisor(places, _Toys(command), self._say).run()
        return self

    def _say(self, line: str) -> None:
        self.lines.append(line)
        if self._then and self._then[0][0] in line:
            os.kill(os.getpid(), self._then.pop(0)[1])

    def said(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]


class _Toys:
    """A worker's command without its first flag, which the toy's command line has in another place."""

    def __init__(self, command: WorkerCommand) -> None:
        self._command = command
        self.drain_s = command.drain_s

    def arguments(self, spot: Spot) -> list[str]:
        words = self._command.arguments(spot)
        at = len(self._command.words)
        return [*words[: at - 1], *words[at + 1 :]]

    def environ(self, spot: Spot) -> dict[str, str]:
        return self._command.environ(spot)


pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def host(tmp_path):
    before = set(children())
    yield Run(tmp_path)
    assert set(children()) <= before


def test_every_worker_is_named_ready_and_all_leave_at_a_signal(host):
    host.then("2 of 2 devices are ready", signal.SIGTERM).run("cpu", "cpu")
    assert len(host.said("is ready at")) == 2
    assert set(host.said("has left")) == {"[cpu] has left", "[cpu-2] has left"}
    assert not list(host.paths.state.rglob("*.log")), "the logs of those that ended well are gone"


def test_ctrl_c_is_told_when_everything_has_ended(host):
    with pytest.raises(KeyboardInterrupt):
        host.then("2 of 2", signal.SIGINT).run("cpu", "cpu")


def test_a_second_signal_does_not_wait(host, monkeypatch):
    monkeypatch.setenv("TOY cpu", "stays")
    host.then("1 of 1", signal.SIGTERM).then("leaves later", signal.SIGTERM).run("cpu")
    assert host.said("leaves later")


def test_a_worker_that_dies_is_started_again(host, monkeypatch):
    monkeypatch.setenv("TOY cpu", "dies")
    monkeypatch.setattr(restarts, "FIRST_WAIT_S", 0.05)
    host.then("is started again in 0.1 s", signal.SIGTERM).run("cpu", "cpu")
    assert "[cpu] its last word" in host.lines
    assert len(host.said("[cpu] worker box/cpu is ready")) >= 2
    assert len(host.said("[cpu-2] worker")) == 1


def test_a_device_that_cannot_start_is_named_and_the_others_serve_on(host, monkeypatch):
    monkeypatch.setenv("TOY cpu", "exit4")
    host.then("1 of 2 devices are ready", signal.SIGTERM).run("cpu", "cpu")
    assert host.said("[cpu] the worker ended with exit code 4 before it was ready")
    assert host.said("[cpu-2] worker box/cpu-2 is ready")


@pytest.mark.parametrize(("code", "error"), [(4, ClusterError), (2, ConfigError)])
def test_when_no_device_can_start_the_command_ends_and_says_why(host, monkeypatch, code, error):
    monkeypatch.setenv("TOY cpu", f"exit{code}")
    with pytest.raises(error, match=rf"no device can be used:\n  cpu: the worker ended with exit code {code}"):
        host.run("cpu")
