"""The Python API: a model over several workers as one object. Knows no socket, engine or HTTP.

with AutoDistributedModel.from_pretrained("smollm2-135m", local_workers=2) as model:
for text in model.chat_stream([{"role": "user", "content": "Why is the sky blue?"}]):
print(text, end="", flush=True)
"""

from __future__ import annotations

import dataclasses
import difflib
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from hyperlane import config
from hyperlane.answer import Answer, TextStream
from hyperlane.cluster.discovery.manager import Discovery
from hyperlane.core import (
    Address,
    ChatMessage,
    GenerationRequest,
    HeadStatus,
    Plan,
    SamplingParams,
    TextGenerator,
)
from hyperlane.errors import InvalidRequest

if TYPE_CHECKING:
    from hyperlane.cluster.discovery.finding import Lookout
    from hyperlane.cluster.trust.opening import OpenDoor
    from hyperlane.node import Report, Serving

Message = ChatMessage | Mapping[str, str]
"""A turn of a conversation: a ChatMessage, or {"role": …, "content": …}."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Limits:
    """Where an answer ends."""

    max_tokens: int | None
    stop: str | Sequence[str]
    timeout: float | None


class AutoDistributedModel:
    """A model that is loaded and ready, over workers of this machine or others. Thread-safe; close it, or use `with`.

    Sampling options of every method are the fields of `SamplingParams`: `temperature`, `top_p`, `top_k`, `seed`, ….
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        local_workers: int | None = None,
        workers: Sequence[str | Address] | None = None,
        devices: str | Sequence[str | int] | None = None,
        report: Report | None = None,
        **settings: Any,  # noqa: ANN401 (the fields of ServeConfig)
    ) -> Self:
        """Start or join the workers, load the model into them and wait until a token went through every stage.

        With no workers named it runs on this machine and on those of its cluster that are found (`DiscoveryManager`).

        `model`: a name of the catalogue, hf.co/OWNER/REPO:QUANTISATION, a URL or a path. `workers`: control addresses,
        HOST:PORT. `devices`: a local worker for each, as `--devices` of `hyperlane serve`: "all" GPUs, their numbers as
        in [0, 2], or names as in ["cuda:0", "cpu"]; not beside `local_workers` or `device`. `report` is told how the
        load goes. `settings`: other fields of `hyperlane.config.ServeConfig`, as `slots`, `context`, `replicas=2` or
        `spare=True`.

        Raises:
            UsageError: an unknown model or setting, or settings that exclude each other.
            RuntimeMissing: a device that is asked for cannot be used here.
            ModelError: the file cannot be used.
            ClusterError: a worker cannot be reached, or the model does not fit.

        """
        from hyperlane.cluster.report import silent
        from hyperlane.node import Looking, start_serving

        given = {"model": model, "local_workers": local_workers, "workers": tuple(workers) if workers else None}
        chosen = config.load(config.ServeConfig, **given, devices=devices, **settings)
        looking = Looking(config.load(config.DiscoveryConfig))
        return cls(start_serving(chosen, report or silent, looking=looking))

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        timeout: float | None = None,
        **sampling: object,
    ) -> Answer:
        """Continue a text. `timeout`: seconds until the answer must be complete, its waiting included; None: no limit.

        Raises:
            DeadlineExceeded: it was not; `stream` shows what there was of it.
            InvalidRequest: an option is unknown or out of range, or the prompt does not fit.
            PipelineLost: a worker was lost.

        """
        return self.stream(prompt, max_tokens=max_tokens, stop=stop, timeout=timeout, **sampling).read()

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        timeout: float | None = None,
        **sampling: object,
    ) -> TextStream:
        """Continue a text, piece by piece. Raises as `generate`, at once or while it is iterated."""
        return self._submit(self.service.encode(prompt), _Limits(max_tokens, stop, timeout), sampling)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        timeout: float | None = None,
        **sampling: object,
    ) -> Answer:
        """Answer a conversation with the model's own chat template. Raises as `generate`."""
        return self.chat_stream(messages, max_tokens=max_tokens, stop=stop, timeout=timeout, **sampling).read()

    def chat_stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        timeout: float | None = None,
        **sampling: object,
    ) -> TextStream:
        """Answer a conversation, piece by piece. Raises as `generate`, at once or while it is iterated."""
        prompt = self.service.encode_chat([_message(message) for message in messages])
        return self._submit(prompt, _Limits(max_tokens, stop, timeout), sampling)

    async def agenerate(self, prompt: str, **options: Any) -> Answer:  # noqa: ANN401 (those of generate)
        """`generate` for a coroutine: the event loop goes on meanwhile."""
        return await self.stream(prompt, **options).aread()

    async def achat(self, messages: Sequence[Message], **options: Any) -> Answer:  # noqa: ANN401 (those of chat)
        """`chat` for a coroutine: the event loop goes on meanwhile."""
        return await self.chat_stream(messages, **options).aread()

    astream = stream
    achat_stream = chat_stream

    @property
    def service(self) -> TextGenerator:
        """The head, for those who want token ids and log-probabilities."""
        return self._serving.service

    @property
    def plan(self) -> Plan:
        """Which layers run where; of the first pipeline, where there are several."""
        return self._serving.plan

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Which layers run where, for each of the `replicas`."""
        return self._serving.plans

    def status(self) -> HeadStatus:
        """What the head measures: times of every stage, bytes on every link, counters."""
        return self.service.status()

    def close(self) -> None:
        """End every request and the workers that were started here; workers of other machines are left free."""
        self._serving.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self,
        prompt: tuple[int, ...],
        limits: _Limits,
        sampling: Mapping[str, object],
    ) -> TextStream:
        stop, timeout = limits.stop, limits.timeout
        if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < float("inf")):
            raise InvalidRequest("timeout is a number of seconds, more than 0", param="timeout")
        request = GenerationRequest(
            request_id=uuid.uuid4().hex,
            prompt=prompt,
            sampling=sampling_params(sampling),
            max_tokens=limits.max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            timeout_s=timeout,
        )
        return TextStream(self.service.submit(request))


class DiscoveryManager(Discovery):
    """Finds the workers of this machine's cluster, for programs. Use `with`, `async with`, or `start` and `close`.

    Those in `workers` answered just now and showed a certificate of the cluster whose head this machine is.

        with DiscoveryManager() as discovery:
            discovery.wait_for(3, timeout=10)
            for change in discovery.changes():
                print(change.member.claim.name, change.member.state)
    """

    def __init__(
        self,
        addresses: Sequence[str | Address] | None = None,
        *,
        mdns: bool | None = None,
        interfaces: Sequence[str] | None = None,
        door: OpenDoor | None = None,
    ) -> None:
        """What is not given is as the configuration says (`[discovery]`).

        Args:
            addresses: control addresses of workers to try besides, HOST:PORT.
            mdns: whether to look on the LAN.
            interfaces: names of interfaces to look on, and no others.
            door: this head's open door; workers that come to it are found without multicast.

        """
        given = {"mdns": mdns, "addresses": tuple(addresses) if addresses is not None else None}
        settings = config.load(config.DiscoveryConfig, **given, interfaces=interfaces)
        super().__init__(lambda: _open_lookout(settings, door))


async def _open_lookout(settings: config.DiscoveryConfig, door: OpenDoor | None) -> Lookout:
    from hyperlane.cluster.discovery.finding import Lookout
    from hyperlane.cluster.trust.opening import head_trust

    paths = config.load(config.Paths)
    return Lookout(settings, paths, head_trust(paths), door)


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """Sampling options by name; None leaves a default.

    Raises:
        InvalidRequest: an option is unknown.

    """
    known = [option.name for option in dataclasses.fields(SamplingParams)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise InvalidRequest(f"'{name}' is no sampling option; {hint}", param=name)
    chosen = {name: value for name, value in options.items() if value is not None}
    if isinstance(chosen.get("logit_bias"), Mapping):
        chosen["logit_bias"] = tuple((int(token), float(bias)) for token, bias in chosen["logit_bias"].items())
    return SamplingParams(**chosen)


def _message(message: Message) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    try:
        return ChatMessage(role=message["role"], content=message["content"])
    except (KeyError, TypeError) as error:
        raise InvalidRequest("a message needs 'role' and 'content'", param="messages") from error
