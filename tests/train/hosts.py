"""Two hosts on one machine: a network namespace each, with a cable between them, and a folder that both share."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from d3d.study.attached import has_ended

ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}
# A host is a network, a name and a set of processes of its own. It knows the other's name, and waits for its end of the
# cable.
HOST = """name=$1
hostname host$name
mount --bind names /etc/hosts
while ! ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip link set lo up && ip address add $2/24 dev eth0 && ip link set eth0 up
sh -c "$3"
echo $? > $name.code
"""
NETWORK = """cd "$1"; shift
new_host="setpriv --pdeathsig KILL unshare --net --uts --pid --fork --kill-child --mount-proc"
$new_host sh -c "$HOST" - a $ADDRESS_A "$COMMAND_A" > a.log 2>&1 &
A=$!
$new_host sh -c "$HOST" - b $ADDRESS_B "$COMMAND_B" > b.log 2>&1 &
B=$!
ip link add cable-a type veth peer name cable-b
for pid in $A $B; do
  while [ "$(readlink /proc/$pid/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
done
ip link set cable-a netns $A name eth0 && ip link set cable-b netns $B name eth0
echo "$A $B"
wait
"""
# It ends with the test, also if that is killed.
NEW_NETWORK = ["unshare", "--map-root-user", "--net", "setpriv", "--pdeathsig", "KILL"]


class TwoHosts:
    """Runs one command on each of two hosts, called a and b, until they end or the block does.

    Args:
        folder: receives the output of each as a.log and b.log.
        commands: of a and b, as a shell takes them.
    """

    def __init__(self, folder: Path, commands: dict[str, str]) -> None:
        self.folder = folder
        for name in ("a", "b"):
            (folder / f"{name}.code").unlink(missing_ok=True)
        names = ["127.0.0.1 localhost", *(f"{address} host{name}" for name, address in ADDRESSES.items())]
        (folder / "names").write_text("\n".join(names) + "\n")
        variables = {"HOST": HOST} | {f"COMMAND_{name.upper()}": command for name, command in commands.items()}
        variables |= {f"ADDRESS_{name.upper()}": address for name, address in ADDRESSES.items()}
        self.process = subprocess.Popen(
            [*NEW_NETWORK, "sh", "-c", NETWORK, "-", str(folder)],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "TwoHosts":
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.pids = dict(zip("ab", map(int, line.split()), strict=True))
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.pids:
            self.kill(name)
        self.process.kill()
        self.process.communicate()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, name: str, text: str) -> None:
        """Waits until the output of a host has a text; fails if the host ends before."""
        while text not in self.log(name):
            assert self.is_up(name), self.log(name)
            time.sleep(0.05)

    def end(self, name: str) -> int:
        """Waits for the end of a host, and returns the exit status of its command."""
        while self.is_up(name):
            time.sleep(0.05)
        return int((self.folder / f"{name}.code").read_text())

    def is_up(self, name: str) -> bool:
        """Whether the command of a host still runs."""
        return not has_ended(self.pids[name])

    def kill(self, name: str) -> None:
        """Kills all processes of a host."""
        with suppress(ProcessLookupError):
            os.kill(self.pids[name], signal.SIGKILL)

    def cut_cable(self) -> None:
        """Takes host b's end of the cable down: nothing arrives at either host any more, not even that it ended."""
        inside = ["nsenter", "--target", str(self.pids["b"]), "--user", "--net"]
        subprocess.run([*inside, "ip", "link", "set", "eth0", "down"], check=True)


def require_hosts() -> None:
    """Skips the test where this system makes no such hosts, with the reason."""
    if missing := [tool for tool in ("unshare", "setpriv", "nsenter", "ip") if not shutil.which(tool)]:
        pytest.skip(f"two hosts on one machine need the command {missing[0]}")
    make = "ip link add x type veth peer name y && unshare --net --uts --pid --fork --mount-proc true"
    tried = subprocess.run([*NEW_NETWORK, "sh", "-c", make], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this system makes no network namespaces for a test: {tried.stderr.strip()}")


def torchrun(name: str, config: str, *, nodes: int = 2, processes: int = 1) -> str:
    """The command that trains on host `name`, with its rendezvous on host a."""
    address = ADDRESSES[name]
    rendezvous = f"--rdzv-backend c10d --rdzv-endpoint {ADDRESSES['a']}:29500 --local-addr {address}"
    sizes = f"--nnodes {nodes} --nproc-per-node {processes}"
    variables = "OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 GLOO_SOCKET_IFNAME=eth0"
    python = f"cd {Path.cwd()} && exec env {variables} {sys.executable}"
    return f"{python} -m torch.distributed.run {sizes} {rendezvous} -m d3d.train --config {config}"
