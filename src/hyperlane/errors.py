"""Every error that Hyperlane raises on purpose. Messages say what happened, to what, and what to do.

HyperlaneError
├── UsageError                   what was asked for is wrong; the caller can mend it      exit code 2
│   ├── UnknownModel             no such name, path or catalogue entry
│   ├── InvalidRequest           a request's field is wrong (carries `param` and `code`)
│   │   └── ContextLengthExceeded
│   └── ConfigError              a flag, variable or file entry is unknown or out of range
├── ModelError                   a model file cannot be used                              exit code 3
│   ├── MalformedModel           truncated, hostile or inconsistent file
│   └── UnsupportedModel         sound, but an architecture, type or tokenizer we do not run
├── RuntimeMissing               no ONNX Runtime, two of them, or no usable device        exit code 4
├── ClusterError                 workers cannot do what the plan wants                    exit code 5
│   ├── WorkerUnreachable
│   ├── VersionMismatch
│   ├── WorkerBusy               another head holds the lease
│   ├── LoadFailed
│   ├── DoesNotFit               no placement fits (carries the numbers)
│   └── NotTrusted               a certificate or key is missing, foreign, expired or revoked
│       ├── JoinRefused          a join token does not open the cluster's door
│       └── DuplicateIdentity    a state directory was copied: two machines would be one node
├── EngineFault                  a stage's engine failed or produced a value that is not finite
├── LinkError                    a data link                                              exit code 6
│   ├── LinkClosed               we closed it, or the peer said BYE
│   ├── LinkBroken               EOF, reset or time-out
│   └── ProtocolError            the peer sent what the protocol forbids
├── PipelineLost                 requests in flight ended because a stage was lost        exit code 6
│   └── StepOverdue              a step did not come back in the time that such steps take
├── Overloaded                   the queue is full (carries `retry_after_s`)
├── DeadlineExceeded             the time that a request was given is over
└── TransferError                a download or a tensor's bytes did not arrive whole      exit code 7
"""

from __future__ import annotations


class HyperlaneError(Exception):
    """Root of the tree. `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(HyperlaneError):
    """What was asked for is wrong; the caller can mend it."""

    exit_code = 2


class UnknownModel(UsageError):
    """No such model name, path or catalogue entry."""


class InvalidRequest(UsageError):
    """A request's field is wrong. `param` names the field, `code` is the OpenAI API's short word, if there is one."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit the context."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ConfigError(UsageError):
    """A flag, environment variable or file entry is unknown or out of range."""


class ModelError(HyperlaneError):
    """A model file cannot be used."""

    exit_code = 3


class MalformedModel(ModelError):
    """The file is truncated, hostile or inconsistent."""


class UnsupportedModel(ModelError):
    """The file is sound, but holds an architecture, type or tokenizer that we do not run."""


class RuntimeMissing(HyperlaneError):
    """No ONNX Runtime is installed, two of them are, or the asked device cannot be used."""

    exit_code = 4


class ClusterError(HyperlaneError):
    """Workers cannot do what the plan wants."""

    exit_code = 5


class WorkerUnreachable(ClusterError):
    """Nothing answers at a worker's address."""


class VersionMismatch(ClusterError):
    """A peer speaks another protocol version."""


class WorkerBusy(ClusterError):
    """Another head holds the worker's lease; the message says who and since when."""


class LoadFailed(ClusterError):
    """A worker could not load its stage."""


class DoesNotFit(ClusterError):
    """No placement fits; the message carries the bytes that are missing and what would fit."""


class NotTrusted(ClusterError):
    """A certificate or key is missing, foreign, expired or revoked, or does not allow what was asked."""


class JoinRefused(NotTrusted):
    """A join token does not open the cluster's door: wrong, expired, used up or revoked."""


class DuplicateIdentity(NotTrusted):
    """A state directory was copied to another machine: two machines would be one node."""


class EngineFault(HyperlaneError):
    """A stage's engine failed, or produced a value that is not finite. `stage`: its index, where that is known."""

    exit_code = 6

    def __init__(self, message: str, *, stage: int | None = None) -> None:
        super().__init__(message)
        self.stage = stage


class LinkError(HyperlaneError):
    """A data link is unusable."""

    exit_code = 6


class LinkClosed(LinkError):
    """This side closed the link, or the peer said BYE."""


class LinkBroken(LinkError):
    """The peer or the network ended the link: EOF, reset, time-out."""


class ProtocolError(LinkError):
    """The peer sent what the protocol forbids. Nothing was allocated for it; the link is closed."""


class PipelineLost(HyperlaneError):
    """Requests in flight ended because a stage was lost."""

    exit_code = 6


class StepOverdue(PipelineLost):
    """A step did not come back in the time that such steps take: a worker hangs, or its network is cut."""


class Overloaded(HyperlaneError):
    """The queue is full. `retry_after_s`: when to try again, in seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(HyperlaneError):
    """The time that a request was given is over; what it had of its answer was told."""


class TransferError(HyperlaneError):
    """A download, or a tensor's bytes, did not arrive whole."""

    exit_code = 7
