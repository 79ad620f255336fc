"""Coverage-guided fuzzing of everything that reads bytes of strangers, with atheris (libFuzzer); `make fuzz` runs it.

    python tests/fuzz/coverage_guided.py [--seconds N] [TARGET …]

Each target runs in a process of its own for so many seconds, from valid inputs on. It fails when something else is
raised than what the reader promises, when memory exceeds `RSS_LIMIT_MB`, or when one input takes longer than
`INPUT_TIMEOUT_S`; the input that did it is then kept in the folder that is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import atheris

IS_FUZZING = "--kept" in sys.argv
"""Whether this is the process of one target; otherwise it starts them."""

with atheris.instrument_imports(include=["hyperlane", "jinja2"]) if IS_FUZZING else nullcontext():
    from hyperlane.api.body import _checked
    from hyperlane.api.schema import ChatRequest, CompletionRequest
    from hyperlane.cluster import messages
    from hyperlane.cluster.discovery.advert import Advert, NodeKind, read_advert, txt_of
    from hyperlane.cluster.pb import control_pb2 as pb
    from hyperlane.cluster.trust.token import JoinToken
    from hyperlane.core import Address, ChatMessage, ElementType, Epoch, HeadId, NodeId, Precision, Row, StageTiming
    from hyperlane.errors import HyperlaneError, InvalidRequest, ModelError
    from hyperlane.models.chat_template import ChatTemplate
    from hyperlane.models.facts import read_facts
    from hyperlane.models.http_ranges import RemoteFile
    from hyperlane.models.remote_gguf import RemoteGguf
    from hyperlane.models.safetensors_header import LENGTH_BYTES, header_bytes, read_header
    from hyperlane.models.tokenizer import Tokenizer
    from hyperlane.models.tokenizer_data import TokenizerData, TokenType
    from hyperlane.testing.tiny_models import write_tiny_model
    from hyperlane.testing.toy import toy_facts, toy_plan, toy_specs
    from hyperlane.wire import codec
    from hyperlane.wire.frame import Copy, Fault, Frame, Hello, Kind, Role
    from hyperlane.wire.hello import HELLO_BYTES, check_hello_header, encode_hello, read_hello
    from hyperlane.wire.limits import Limits, Terms, payload_bytes
    from hyperlane.wire.reader import FrameReader

RSS_LIMIT_MB = 1024
MOST_READ = 1 << 20
INPUT_TIMEOUT_S = 15


@dataclass(frozen=True, slots=True)
class Target:
    """`run` takes any bytes; `promised`: all that it may raise; `seeds`: valid inputs to begin with."""

    run: Callable[[bytes], object]
    promised: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]


# --- frames ----------------------------------------------------------------------------------------------------

LIMITS = Limits(4, 64, slots=4, context=256, vocab=300, token_bytes=8, max_payload_bytes=1 << 16)
TERMS = Terms(5, LIMITS, frozenset({Kind.TOKENS, Kind.HIDDEN, Kind.CANDIDATES, Kind.LOGITS}))


def read_frames(data: bytes) -> None:
    reader, rest = FrameReader(TERMS), memoryview(data)
    while rest:
        place = lambda frame: memoryview(bytearray(payload_bytes(frame.kind, frame.rows, LIMITS)))  # noqa: E731
        if reader.next(place) is None:
            buffer = reader.buffer()
            count = min(len(buffer), len(rest))
            buffer[:count], rest = rest[:count], rest[count:]
            reader.received(count)


def frame_seeds() -> list[bytes]:
    rows = (Row(0, 3, 4, (1, 2), 5, (7, 8)), Row(2, 0, 1, (0,)), Row(1, 9, 2, skip_from=63, one_by_one=True))
    timings = (StageTiming(0, 1, 2, 3, 4, 5), StageTiming(1, 1, 2, 3, 4, 5))
    frames: list[Copy | Fault | Frame] = [Copy(5, 9, 0, 1, 20), Fault(5, 9, 1, "it broke")]
    for kind in (Kind.TOKENS, Kind.HIDDEN, Kind.CANDIDATES, Kind.LOGITS):
        asked = (Row(3, 3, 4, (1, 3), whole_logits=True),) if kind is Kind.LOGITS else rows
        frames.append(Frame(kind, 5, 9, asked, (bytes(payload_bytes(kind, asked, LIMITS)),), timings))
    return [b"".join(bytes(buffer) for buffer in codec.encode(frame)) for frame in frames] + [codec.bye(5)]


def read_greeting(data: bytes) -> None:
    whole = data[:HELLO_BYTES].ljust(HELLO_BYTES, b"\0")
    header = codec.read_header(whole)
    check_hello_header(header)
    read_hello(header, whole[codec.HEADER.size :])


def hello_seeds() -> list[bytes]:
    epoch = Epoch(HeadId(bytes(16)), 5)
    return [encode_hello(Hello(epoch, 0, Role.UPSTREAM, LIMITS, ElementType.F32, Precision.RAW, 2, "0.1.0"))]


# --- models ----------------------------------------------------------------------------------------------------


def read_gguf(data: bytes) -> None:
    file = RemoteFile("http://fuzzed/m.gguf", len(data))
    model = RemoteGguf(file, data, Path("fuzzed.gguf"), lambda _file: Bytes(data), None)
    for name in model.names()[:50]:
        info = model.info(name)
        assert info is not None
        if info.nbytes <= MOST_READ:
            assert model.read(name).nbytes == info.nbytes
    read_facts(model)


class Bytes:
    """A server's file."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= len(self._data)  # places are checked against the file's size before anything is read
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing to close."""


def gguf_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            write_tiny_model(Path(folder) / f"{family}.gguf", family=family, layers=1, hidden=32, ffn=32)
            for family in ("llama", "gemma3")
        ]
        return [path.read_bytes() for path in paths]


def read_safetensors(data: bytes) -> None:
    read_header(data[: header_bytes(data[:LENGTH_BYTES], len(data), "fuzzed")], len(data), "fuzzed")


def safetensors_seeds() -> list[bytes]:
    text = b'{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"__metadata__":{"a":"b"}}'
    return [len(text).to_bytes(8, "little") + text + bytes(4)]


WORDS = ["<s>", "</s>", *map(chr, range(33, 127)), "Ġ", "Ċ"]
KINDS = [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(WORDS) - 2)
TOKENIZER = Tokenizer(TokenizerData("gpt2", WORDS, KINDS, pre="gpt-2", merges=[], bos_id=0, eos_id=1))


def run_template(data: bytes) -> None:
    template = ChatTemplate(data.decode("utf-8", "replace"), TOKENIZER)
    template.render([ChatMessage("user", "hi"), ChatMessage("assistant", "ho")])


def template_seeds() -> list[bytes]:
    return [
        b"{% for m in messages %}{{ '<|' + m['role'] ~ '|>' + m.content | trim }}{% endfor %}",
        b"{% set ns = namespace(x=[1]) %}{% macro f(a) %}{{ a * 3 }}{% endmacro %}{{ f('x') }}{{ ns.x | tojson }}",
        b"{{ '%s' % ('a',) }}{{ '{}'.format(1) }}{{ range(3) | list | join(',') }}{{ 'a'.replace('a', 'b') }}",
    ]


# --- messages --------------------------------------------------------------------------------------------------


def read_load(data: bytes) -> None:
    request = pb.LoadRequest()
    try:
        request.ParseFromString(data)
    except Exception:  # noqa: BLE001 (protobuf's own refusal)
        return
    messages.load_from(request, None)


def load_seeds() -> list[bytes]:
    from hyperlane.stage.orders import LoadOrder, WeightSources

    spec = toy_specs(toy_plan(toy_facts(), stages=2))[0]
    return [messages.load_to(LoadOrder(spec, WeightSources(), 1, 2, 3), ()).SerializeToString()]


def read_bodies(data: bytes) -> None:
    for model in (ChatRequest, CompletionRequest):
        try:
            _checked(data, model)
        except InvalidRequest:
            continue


def body_seeds() -> list[bytes]:
    return [
        b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "n": 2}',
        b'{"model": "m", "prompt": [[1, 2], [3]], "logit_bias": {"7": -1.5}, "stop": ["a"], "stream": true}',
    ]


def read_token(data: bytes) -> None:
    JoinToken.decode(data.decode("ascii", "replace"))


def read_txt(data: bytes) -> None:
    pairs = [part.partition(b"=") for part in data.split(b"\n")]
    read_advert({key: value for key, _, value in pairs}, 7420)


def txt_seeds() -> list[bytes]:
    advert = Advert(NodeId(bytes(16)), "b" * 16, "c" * 32, "name", NodeKind.WORKER, "0.1.0", 1, 7420)
    return [b"\n".join(f"{key}={value}".encode() for key, value in txt_of(advert).items())]


def token_seeds() -> list[bytes]:
    return [JoinToken(bytes(8), bytes(16), bytes(32), (Address("10.0.0.1", 7419),)).encode().encode()]


TARGETS: Mapping[str, Target] = {
    "frames": Target(read_frames, (HyperlaneError,), frame_seeds),
    "hello": Target(read_greeting, (HyperlaneError,), hello_seeds),
    "gguf": Target(read_gguf, (ModelError,), gguf_seeds),
    "safetensors": Target(read_safetensors, (ModelError,), safetensors_seeds),
    "template": Target(run_template, (InvalidRequest,), template_seeds),
    "load": Target(read_load, (HyperlaneError,), load_seeds),
    "body": Target(read_bodies, (), body_seeds),
    "token": Target(read_token, (HyperlaneError,), token_seeds),
    "advert": Target(read_txt, (ValueError, HyperlaneError), txt_seeds),
}


def fuzz(name: str, seconds: int, kept: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    target = TARGETS[name]
    corpus = kept / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            target.run(data)
        except target.promised:
            return

    options = [f"-max_total_time={seconds}", f"-rss_limit_mb={RSS_LIMIT_MB}", f"-timeout={INPUT_TIMEOUT_S}"]
    options += ["-verbosity=0", "-print_final_stats=0", f"-artifact_prefix={kept}/{name}-", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--kept", type=Path, default=None)
    asked = parser.parse_args()
    chosen = asked.targets or list(TARGETS)
    if not set(chosen) <= set(TARGETS):
        parser.error(f"targets are {', '.join(TARGETS)}")
    if asked.kept is not None:
        fuzz(chosen[0], asked.seconds, asked.kept)
    kept, failed = Path(tempfile.mkdtemp(prefix="hyperlane-fuzz-")), []
    for name in chosen:
        command = [sys.executable, __file__, name, "--seconds", str(asked.seconds), "--kept", str(kept)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        inputs = len(list((kept / name).iterdir()))
        outcome = "failed" if ran.returncode else "sound"
        print(f"{name}: {outcome}, {inputs} inputs that reached something new", flush=True)
        if ran.returncode:
            print(ran.stdout[-2000:] + ran.stderr[-6000:])
            failed.append(name)
    print(f"inputs are in {kept}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
