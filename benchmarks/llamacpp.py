"""Builds llama.cpp with its RPC server from the sdist of `llama-cpp-python`, and times it on a GGUF file.

python benchmarks/llamacpp.py build          about 4 minutes on 2 cores; needs cmake, ninja and a C++ compiler
python benchmarks/llamacpp.py bench MODEL    what `compare.py` interleaves with Hyperlane, alone
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.3.36"
WORK = Path(__file__).parent / ".work"
SOURCE = WORK / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
BIN = SOURCE / "build" / "bin"
TARGETS = ("ggml-rpc-server", "llama-bench", "llama-batched-bench", "llama-perplexity")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DGGML_RPC=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second: a prompt of 512, and decoding of 128."""

    prefill: float
    decode: float


def build() -> None:
    """Download, unpack and build, unless the tools are there already."""
    if all((BIN / target).exists() for target in TARGETS):
        return
    WORK.mkdir(exist_ok=True)
    archive = WORK / f"llama_cpp_python-{VERSION}.tar.gz"
    if not archive.exists():
        package = f"llama-cpp-python=={VERSION}"
        _run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python", package,
             "-d", str(WORK))  # fmt: skip
    with tarfile.open(archive) as tar:
        tar.extractall(WORK, filter="data")
    _run("cmake", "-S", str(SOURCE), "-B", str(SOURCE / "build"), "-G", "Ninja", *OPTIONS)
    _run("ninja", "-C", str(SOURCE / "build"), *TARGETS)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return
    raise RuntimeError(f"the RPC server on port {port} ended with code {process.returncode}")


@contextlib.contextmanager
def rpc_servers(count: int, threads: int) -> Iterator[str]:
    """Start `count` RPC servers on loopback; yields what `--rpc` wants."""
    ports = [_free_port() for _ in range(count)]
    servers = [
        subprocess.Popen(
            [str(BIN / "ggml-rpc-server"), "-t", str(threads), "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for port in ports
    ]
    try:
        for server, port in zip(servers, ports, strict=True):
            _wait_until_listening(server, port)
        yield ",".join(f"127.0.0.1:{port}" for port in ports)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def bench(model: Path, *, threads: int = 1, rpc: str | None = None, micro_batch: int = 512, decode: int = 128) -> Rates:
    """One repetition of llama-bench: a prompt of 512 and `decode` tokens."""
    command = [str(BIN / "llama-bench"), "-m", str(model), "-p", "512", "-n", str(decode), "-t", str(threads),
               "-ub", str(micro_batch), "-r", "1", "-o", "json"]  # fmt: skip
    if rpc:
        command += ["--rpc", rpc, "-ngl", "99"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rates = {bool(row["n_prompt"]): float(row["avg_ts"]) for row in json.loads(output)}
    return Rates(prefill=rates[True], decode=rates.get(False, 0.0))


def batched_decode(model: Path, streams: int, *, threads: int = 1, rpc: str | None = None) -> float:
    """Tokens per second of `streams` sequences that decode together after prompts of 128 tokens."""
    command = [str(BIN / "llama-batched-bench"), "-m", str(model), "-c", "4096", "-b", "2048", "-ub", "512",
               "-npp", "128", "-ntg", "64", "-npl", str(streams), "--output-format", "jsonl",
               "-t", str(threads)]  # fmt: skip
    if rpc:
        command += ["--rpc", rpc, "-ngl", "99"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads([line for line in output.splitlines() if line.startswith("{")][-1])["speed_tg"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "bench"))
    parser.add_argument("model", nargs="?", type=Path)
    arguments = parser.parse_args()
    build()
    if arguments.action == "bench":
        if arguments.model is None:
            parser.error("bench wants the path of a GGUF file")
        print("one process, 1 thread", bench(arguments.model))
        with rpc_servers(2, 1) as rpc:
            print("2 RPC servers of 1 thread, micro-batch 512", bench(arguments.model, rpc=rpc))
            print("2 RPC servers of 1 thread, micro-batch 64", bench(arguments.model, rpc=rpc, micro_batch=64))
            print("2 RPC servers of 1 thread, 8 streams", batched_decode(arguments.model, 8, rpc=rpc))


if __name__ == "__main__":
    main()
