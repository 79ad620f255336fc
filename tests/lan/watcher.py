"""A head without a model: its door is open, and it says in JSON lines whom it finds and what becomes of them.

Standard input: `token` prints a token, `look` prints everybody who is there, the end of it ends the program.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time

from hyperlane import DiscoveryManager, config
from hyperlane.cluster.trust.opening import OpenDoor


def say(**what) -> None:
    sys.stdout.write(json.dumps({"at": time.time(), **what}) + "\n")  # in one piece: the log goes the same way
    sys.stdout.flush()


def tell(discovery: DiscoveryManager) -> None:
    for change in discovery.changes():
        member = change.member
        found = sorted(str(source) for source in member.sources)
        say(event=str(member.state), name=member.claim.name, address=str(member.address), found=found)


def look(discovery: DiscoveryManager) -> None:
    say(
        event="there",
        found=[
            {
                "name": one.member.claim.name,
                "state": str(one.member.state),
                "address": str(one.member.address),
                "found": sorted(str(source) for source in one.member.sources),
                "reason": one.member.reason,
            }
            for one in discovery.found()
        ],
        strangers=sorted({heard.advert.name for heard in discovery.strangers()}),
        duplicates=[str(one) for one in discovery.duplicates()],
    )


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = config.load(config.JoinConfig)
    door = OpenDoor(settings.paths, settings)
    with DiscoveryManager(door=door) as discovery:
        threading.Thread(target=tell, args=(discovery,), daemon=True).start()
        say(event="looking")
        for line in sys.stdin:
            if line.strip() == "token":
                say(event="token", token=door.token(600.0, 8).encode())
            else:
                look(discovery)
    door.close()


if __name__ == "__main__":
    main()
