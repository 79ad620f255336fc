"""A stranger on the LAN: can neither join, nor load, nor send a frame, nor read one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SNIFFER = """
import socket, sys, threading
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
sock.bind(("lan0", 0))
sock.settimeout(0.05)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
print("listening", flush=True)
with open(sys.argv[1], "wb") as file:
    while not ended.is_set():
        try:
            file.write(sock.recv(1 << 16))
        except TimeoutError:
            pass
"""

KNOCK = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
sock.sendall(bytes.fromhex(sys.argv[3]))
sock.shutdown(socket.SHUT_WR)
answer = b""
try:
    while piece := sock.recv(4096):
        answer += piece
except ConnectionResetError:
    pass
print(answer.hex())
"""

HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".hex() + "000000040000000000"
HELLO = "4859504c02010000030000000000000000000000000000000000000000000000680000000000000000" + "00" * 103


@pytest.fixture
def cluster(machine, tiny_model):
    """A head and a worker that has joined it and is in its plan, with the token that was used up."""
    head, worker, stranger = machine("head"), machine("worker"), machine("stranger")
    first = head.start("serve", tiny_model)
    first.wait_for("hyperlane worker --join")
    used = head.hyperlane("token", "create").strip()
    joined = worker.start("worker", "--join", used)
    joined.wait_for("is ready at")
    first.stop()
    serving = head.start("serve", tiny_model, "--context", "200")
    serving.wait_for("ready:")
    return head, worker, stranger, used, serving, joined


def ask(machine, prompt: str) -> dict:
    code = (
        "import json, sys, urllib.request\n"
        "body = json.dumps({'model': 'tiny', 'prompt': %r, 'max_tokens': 8, 'temperature': 0}).encode()\n"
        "request = urllib.request.Request('http://127.0.0.1:8000/v1/completions', body)\n"
        "request.add_header('Content-Type', 'application/json')\n"
        "sys.stdout.write(urllib.request.urlopen(request, timeout=50).read().decode())\n"
    )
    return json.loads(machine.python(code % prompt))


def knock(stranger, host: str, port: int, data: str) -> bytes:
    command = stranger.host.command([sys.executable, "-c", KNOCK, host, str(port), data])
    ran = subprocess.run(command, env=stranger.environ, capture_output=True, text=True, timeout=60, check=True)
    return bytes.fromhex(ran.stdout.strip())


def test_a_stranger_neither_joins_nor_gets_a_word_out_of_any_port(cluster):
    head, worker, stranger, used, serving, joined = cluster
    for token in (used, used[:-1] + ("a" if used[-1] != "a" else "b")):
        stranger.hyperlane("worker", "--join", token, code=5)
    assert not (stranger.home / "state" / "trust" / "worker" / "node.pem").exists()
    serving.wait_for(f"the door refused {stranger.host.address}:")
    for port in (7420, 7421):
        for data in (HTTP2, HELLO, "47455420"):
            answer = knock(stranger, worker.host.address, port, data)
            assert answer[:1] in (b"", b"\x15"), answer  # a TLS alert, or nothing at all
    joined.wait_for(f"{stranger.host.address}:")
    assert ask(head, "the ring")["choices"][0]["text"]


def test_what_crosses_the_lan_shows_no_frame_no_prompt_and_no_answer(cluster, tmp_path):
    head, worker, _, _, _, _ = cluster
    seen = tmp_path / "seen"
    sniffer = worker.program(sys.executable, "-c", SNIFFER, str(seen))
    sniffer.wait_for("listening")
    prompt = "the ring of encrypted links"
    answer = ask(head, prompt)["choices"][0]["text"]
    sniffer.end_input()
    caught = seen.read_bytes()
    assert len(caught) > 2000  # the request did cross this cable
    for secret in (b"HYPL", prompt.encode(), answer.encode()):
        assert secret not in caught


def test_a_removed_machine_is_not_spoken_to_any_more(cluster):
    head, worker, _, _, serving, _ = cluster
    node = json.loads(head.hyperlane("node", "list", "--json"))[0]
    assert node["address"] == worker.host.address
    assert "is revoked" not in head.hyperlane("node", "remove", node["node"])
    serving.wait_for("was removed from the cluster")
    assert json.loads(head.hyperlane("node", "list", "--json"))[0]["state"] == "removed"
