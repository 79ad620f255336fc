"""`hyperlane service`: a worker that starts with the machine (systemd)."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hyperlane import config
from hyperlane.cli.command import command
from hyperlane.cli.flags import CommonFlags
from hyperlane.cli.terminal import note
from hyperlane.cli.units import NAME, Unit
from hyperlane.config import Paths
from hyperlane.errors import UsageError
from hyperlane.files import replace_file

SYSTEM_FOLDER = Path("/etc/systemd/system")
SYSTEMCTL_TIMEOUT_S = 60.0


class Action(enum.StrEnum):
    """What to do with the service."""

    INSTALL = "install"
    UNINSTALL = "uninstall"
    STATUS = "status"


@command
def service(
    *,
    action: Annotated[Action, typer.Argument(help="install, uninstall or status")],
    system: Annotated[
        bool, typer.Option("--system", help="start with the machine, not with your first login (needs root)")
    ] = False,
    run_as: Annotated[
        str | None,
        typer.Option("--run-as", metavar="USER", envvar="SUDO_USER", help="user of a system service", show_envvar=True),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option("--devices", metavar="all|0,2|NAME,…", help="as of `hyperlane worker`: a process for each"),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="print the unit and change nothing")] = False,
    common: CommonFlags,
) -> None:
    """Let systemd start `hyperlane worker` on this machine, and again whenever it ends.

    Settings are those of the configuration file. macOS and Windows: see docs/discovery.md.

    [bold]Examples[/bold]

    hyperlane service install

    sudo hyperlane service install --system
    """
    manager = Manager(system=system)
    if action is Action.STATUS:
        raise typer.Exit(manager.show_status())
    if action is Action.UNINSTALL:
        manager.uninstall()
        note(f"{NAME} is gone; nothing else was removed")
        return
    if system and run_as is None:
        raise UsageError("say which user the worker runs as: --run-as USER")
    unit = Unit([*_command(common), *_devices(devices)], _environment(common), run_as if system else None)
    if show:
        print(unit.text(), end="")
        return
    path = manager.install(unit.text())
    note(f"{path} is installed and started; `hyperlane service status` shows how it does", style="")
    if not system:
        note("it starts at your first login; to have it started with the machine: loginctl enable-linger")


@dataclass(frozen=True, slots=True)
class Manager:
    """systemd, for the machine or for this user."""

    system: bool

    @property
    def path(self) -> Path:
        """Where the unit is."""
        if self.system:
            return SYSTEM_FOLDER / NAME
        return Path("~/.config/systemd/user").expanduser() / NAME

    def install(self, text: str) -> Path:
        """Write the unit, enable and start it; again: replace and restart it.

        Raises:
            UsageError: there is no systemd here, or it may not be used, or does not take the unit.

        """
        self._check()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, text.encode())
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}{self._hint()}") from error
        self._run("daemon-reload")
        self._run("enable", NAME)
        self._run("restart", NAME)
        return self.path

    def uninstall(self) -> None:
        """Stop, disable and remove the unit.

        Raises:
            UsageError: it is not installed, or systemd may not be used.

        """
        self._check()
        if not self.path.exists():
            raise UsageError(f"{self.path} is not there: nothing is installed{self._hint()}")
        self._run("disable", "--now", NAME)
        try:
            self.path.unlink()
        except OSError as error:
            raise UsageError(f"{self.path} cannot be removed: {error.strerror}{self._hint()}") from error
        self._run("daemon-reload")

    def show_status(self) -> int:
        """What systemd says, on standard output; its exit code (3: not running, 4: not installed).

        Raises:
            UsageError: there is no systemd here.

        """
        self._check()
        return subprocess.run([*self._systemctl, "status", "--no-pager", NAME], check=False).returncode

    @property
    def _systemctl(self) -> list[str]:
        return ["systemctl"] if self.system else ["systemctl", "--user"]

    def _check(self) -> None:
        if shutil.which("systemctl") is None:
            raise UsageError(
                "there is no systemd on this machine; docs/discovery.md says how to start a worker with launchd "
                "(macOS) and with the task scheduler (Windows)"
            )

    def _run(self, *words: str) -> None:
        try:
            done = subprocess.run(
                [*self._systemctl, *words],
                capture_output=True,
                text=True,
                timeout=SYSTEMCTL_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UsageError(f"systemctl {words[0]} did not end within {SYSTEMCTL_TIMEOUT_S:g} s") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise UsageError(f"systemctl {' '.join(words)} failed: {said}{self._hint()}")

    def _hint(self) -> str:
        return "" if not self.system or os.geteuid() == 0 else " (a system service needs root: use sudo)"


def _command(common: CommonFlags) -> list[str]:
    words = [sys.executable, "-m", "hyperlane", "worker"]
    return [*words, "--config", str(common.config.resolve())] if common.config else words


def _devices(asked: str | None) -> list[str]:
    """The option as the worker gets it; a typing error is told now, not in the unit's journal."""
    if asked is None:
        return []
    return ["--devices", ",".join(config.load(config.WorkerConfig, devices=asked).devices)]


def _environment(common: CommonFlags) -> dict[str, str]:
    """The directories, where they are not the usual ones."""
    usual, chosen = Paths(), config.load(Paths, common.config)
    places = {
        "HYPERLANE_PATHS_CACHE": (usual.cache, chosen.cache),
        "HYPERLANE_PATHS_STATE": (usual.state, chosen.state),
    }
    return {name: str(mine.resolve()) for name, (theirs, mine) in places.items() if mine != theirs}
