"""The vocabulary of Hyperlane as plain frozen data: epochs, rows, plans, requests, events.

Imports nothing of ours and knows no socket, clock, engine or file. `docs/architecture.md` defines every word.
"""

from __future__ import annotations

from hyperlane.core.counts import Endings, Refusals, RequestCounts
from hyperlane.core.frames import Kept, Row, StageTiming
from hyperlane.core.model import ElementType, ModelFacts, Precision, RopeFacts, WeightForm
from hyperlane.core.names import CANDIDATES_K, Address, ClusterId, Epoch, HeadId, NodeId, TokenId
from hyperlane.core.plans import (
    PROMPT_CHUNK,
    PROMPT_CHUNKS,
    Copies,
    LayerRange,
    Plan,
    Planner,
    Prediction,
    StageCost,
    StagePlan,
    StageSpec,
    WorkerFacts,
    holds_twice,
)
from hyperlane.core.requests import (
    ChatMessage,
    Event,
    EventStream,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    RequestTimings,
    SamplingParams,
    TextDelta,
    TokenChoice,
    TokenLogprob,
    Usage,
)
from hyperlane.core.status import Achieved, HeadStatus, LinkStatus, NodeStatus, SpareStatus, StageStatus, TextGenerator

__all__ = [
    "CANDIDATES_K",
    "PROMPT_CHUNK",
    "PROMPT_CHUNKS",
    "Achieved",
    "Address",
    "ChatMessage",
    "ClusterId",
    "Copies",
    "ElementType",
    "Endings",
    "Epoch",
    "Event",
    "EventStream",
    "Failed",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "HeadId",
    "HeadStatus",
    "Kept",
    "LayerRange",
    "LinkStatus",
    "ModelFacts",
    "NodeId",
    "NodeStatus",
    "Plan",
    "Planner",
    "Precision",
    "Prediction",
    "Refusals",
    "RequestCounts",
    "RequestTimings",
    "RopeFacts",
    "Row",
    "SamplingParams",
    "SpareStatus",
    "StageCost",
    "StagePlan",
    "StageSpec",
    "StageStatus",
    "StageTiming",
    "TextDelta",
    "TextGenerator",
    "TokenChoice",
    "TokenId",
    "TokenLogprob",
    "Usage",
    "WeightForm",
    "WorkerFacts",
    "holds_twice",
]
