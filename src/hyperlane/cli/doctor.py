"""`hyperlane doctor`: what stops a cluster, what it means, and what to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from hyperlane import __version__, config
from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags
from hyperlane.cli.terminal import note, write_json
from hyperlane.config import DiscoveryConfig, Paths, WorkerConfig
from hyperlane.core import Address
from hyperlane.errors import UsageError

if TYPE_CHECKING:
    from hyperlane.cluster.doctor.examine import Examination
    from hyperlane.cluster.doctor.finding import Finding

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}


@command
def doctor(
    *,
    peers: Annotated[
        list[str] | None,
        typer.Option("--worker", "-w", metavar="HOST:PORT", help="a worker that should be reachable; may be repeated"),
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="SIZE", help="bytes of disk that a model will need, as 20GiB")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
    common: CommonFlags,
) -> None:
    """Find what stops this machine from working with others. Ends with 1 when something does, else with 0.

    Looks at the runtime, the disk, the clock and this machine's identity; tests multicast on every interface; and
    knocks at every worker that is heard, configured, or named here.

    [bold]Examples[/bold]

    hyperlane doctor

    hyperlane doctor --worker 192.168.1.20:7420 --json
    """
    from hyperlane.cluster.doctor.examine import examine
    from hyperlane.cluster.doctor.finding import exit_code
    from hyperlane.plain import plain

    if not as_json:
        note("looking around; this takes a few seconds")
    findings = asyncio.run(examine(_what(peers or [], space, common)))
    if as_json:
        write_json({"version": __version__, "findings": plain(findings)})
    else:
        for finding in findings:
            _show(finding)
    raise typer.Exit(exit_code(findings))


def _what(peers: list[str], space: str | None, common: CommonFlags) -> Examination:
    from hyperlane import values
    from hyperlane.cluster.doctor.examine import Examination
    from hyperlane.cluster.messages import CONTROL_PROTOCOL
    from hyperlane.cluster.trust.opening import known_trust_folder, machine_of
    from hyperlane.cluster.worker import listen_address

    paths = config.load(Paths, common.config)
    discovery = config.load(DiscoveryConfig, common.config)
    worker = config.load(WorkerConfig, common.config)
    trust = known_trust_folder(paths)
    joined = (trust / "worker").exists()
    try:
        named = tuple(map(Address.parse, peers))
        needed = values.size(space) if space is not None else 0
    except ValueError as error:
        raise UsageError(str(error)) from None
    return Examination(
        cache=paths.cache,
        trust=trust,
        listen=worker.listen or listen_address(joined=joined),
        version=__version__,
        protocol=CONTROL_PROTOCOL,
        machine=machine_of(paths),
        peers=(*named, *discovery.addresses),
        interfaces=discovery.interfaces,
        mdns=discovery.mdns,
        loopback=discovery.loopback,
        needed_bytes=needed,
    )


def _show(finding: Finding) -> None:
    """One finding on standard output: what, what it means, what to do."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{finding.level:>8}", style=_STYLES[finding.level], end="  ", markup=False)
    console.print(f"{finding.check}: {finding.found}", markup=False)
    if finding.means:
        console.print(f"{'':10}{finding.means}", markup=False)
    if finding.do:
        console.print(f"{'':10}→ {finding.do}", markup=False)
