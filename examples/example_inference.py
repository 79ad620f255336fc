"""Streams a chat answer from a model that is cut over several worker processes, and says what each of them did.

Run it with `make run-example`, or with another question: python examples/example_inference.py "Who was Ada Lovelace?"
"""

from __future__ import annotations

import argparse
import sys

from hyperlane import AutoDistributedModel
from hyperlane.errors import HyperlaneError
from hyperlane.summary import answer_summary, plan_table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="Why is the sky blue? Answer in two sentences.")
    parser.add_argument("--model", default="smollm2-135m", help="a name of `hyperlane models`, or a GGUF file")
    parser.add_argument("--local-workers", type=int, help="worker processes on this machine (default: 2)")
    parser.add_argument("--worker", action="append", metavar="HOST:PORT", help="a worker on another machine")
    arguments = parser.parse_args()
    if arguments.local_workers is None and not arguments.worker:
        arguments.local_workers = 2
    return arguments


def main() -> int:
    arguments = parse_arguments()
    with AutoDistributedModel.from_pretrained(
        arguments.model, local_workers=arguments.local_workers, workers=arguments.worker
    ) as model:
        print(plan_table(model.plan), end="\n\n")
        print(f"› {arguments.question}\n")
        stream = model.chat_stream([{"role": "user", "content": arguments.question}], max_tokens=200, temperature=0.0)
        for text in stream:
            print(text, end="", flush=True)
        print("\n\n" + answer_summary(stream.answer, model.status()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HyperlaneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
