"""A cluster of one machine: munged, slurmctld and slurmd with a configuration of their own, removed at the end.

Its GPU is a file that stands in for a device: SLURM hands it out as it would a GPU.
"""

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

# The nested srun of a job has no SLURM_CONF, so that the configuration must be where SLURM looks for it.
CONFIGURATION = Path("/etc/slurm")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "sinfo", "scontrol")
PLUGIN = "snakemake_executor_plugin_slurm"
PATIENCE = 60.0
NUM_GPUS, SHARDS_PER_GPU = 1, 4
SLURM = """\
ClusterName=d3d
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
KillWait=30
ReturnToService=2
MinJobAge=300
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
GresTypes=gpu,shard
NodeName=localhost CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus},shard:{shards}
PartitionName=main Nodes=localhost Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=localhost PriorityTier=2 PreemptMode=OFF
"""
GRES = """\
Name=gpu File={folder}/gpu[0-{last}]
Name=shard Count={shards}
"""


def missing() -> str:
    """What this machine lacks to be a cluster, in one sentence; empty if nothing."""
    lacks = [name for name in PROGRAMS if not shutil.which(name)]
    sentences = []
    if lacks:
        sentences.append(f"{', '.join(lacks)} (on Debian and Ubuntu: apt install slurm-wlm munge)")
    if not find_spec(PLUGIN):
        sentences.append("Snakemake's plugin (pip install -e '.[slurm]')")
    if os.geteuid() != 0:
        sentences.append("the rights of root, to start SLURM")
    return " and ".join(sentences)


def occupied() -> str:
    """What shows that this machine belongs to a cluster already, in one sentence; empty if nothing does."""
    for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
        if (path := CONFIGURATION / name).exists():
            return f"{path} is there: this machine belongs to a cluster, and its configuration is left as it is"
    for name in ("slurmctld", "slurmd"):
        if subprocess.run(["pgrep", "-x", name], capture_output=True, check=False).returncode == 0:
            return f"a {name} runs here: this machine belongs to a cluster"
    return ""


class Cluster:
    """SLURM on this machine while the context lasts.

    Args:
        folder: where it keeps its state and its logs; every user must be able to enter it.
        cpus: how many processors it hands out, whatever the machine has.
    """

    def __init__(self, folder: Path, *, cpus: int) -> None:
        self.folder, self.cpus = folder, cpus
        self.daemons: dict[str, subprocess.Popen] = {}
        self.written: list[Path] = []

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def _start(self) -> None:
        munge = pwd.getpwnam("munge")
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for path in (self.folder / "munge", key):
            os.chown(path, munge.pw_uid, munge.pw_gid)
        for gpu in range(NUM_GPUS):
            os.mknod(self.folder / f"gpu{gpu}", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
        values = {"folder": self.folder, "cpus": self.cpus, "memory": 64000, "ports": free_ports(2)}
        values |= {"gpus": NUM_GPUS, "last": NUM_GPUS - 1, "shards": NUM_GPUS * SHARDS_PER_GPU}
        CONFIGURATION.mkdir(exist_ok=True)
        for name, text in (("slurm.conf", SLURM), ("gres.conf", GRES)):
            with open(CONFIGURATION / name, "x") as file:  # never in place of another
                self.written.append(CONFIGURATION / name)
                file.write(text.format(**values))
        options = [f"--{name}-file={self.folder}/munge/{name}" for name in ("key", "log", "pid", "seed")]
        socket_option = f"--socket={self.folder}/munge/socket"
        self._daemon(["munged", "--foreground", socket_option, *options], user="munge", group="munge", extra_groups=[])
        self._wait((self.folder / "munge/socket").exists, "munged")
        self._daemon(["slurmctld", "-D"])
        self._daemon(["slurmd", "-D", "-N", "localhost"])
        self._wait(lambda: _output("sinfo", "-h", "-p", "main", "-o", "%T") == "idle", "slurmctld and slurmd")

    def _daemon(self, command: list[str], **kwargs) -> None:
        log = open(self.folder / f"{command[0]}.out", "wb")  # noqa: SIM115
        # Its own session: Ctrl-C is for the script, which then stops the daemons in order.
        self.daemons[command[0]] = subprocess.Popen(
            [shutil.which(command[0]), *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, cwd=self.folder, **kwargs,
        )  # fmt: skip
        log.close()

    def _wait(self, ready, what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not ready():
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    raise RuntimeError(f"{name} has ended: {self._last_lines(name)}")
            if time.monotonic() > until:
                raise RuntimeError(f"{what} not ready after {PATIENCE:.0f} s: {self._last_lines('slurmctld')}")
            time.sleep(0.1)

    def _last_lines(self, name: str) -> str:
        logs = [self.folder / f"{name}.{ending}" for ending in ("out", "log")]
        return " | ".join("\n".join(log.read_text().splitlines()[-5:]) for log in logs if log.exists())

    def stop(self) -> None:
        """Cancels all jobs, ends the daemons and removes the configuration."""
        if "slurmd" in self.daemons:
            _output("scancel", "--me")
            until = time.monotonic() + PATIENCE
            while _output("squeue", "-h") and time.monotonic() < until:
                time.sleep(0.2)
        for daemon in reversed(self.daemons.values()):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
        for path in self.written:
            path.unlink(missing_ok=True)
        self.written.clear()


def _output(*command: str) -> str:
    """What a command of SLURM prints; empty if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return done.stdout.strip() if done.returncode == 0 else ""


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that nothing uses."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for each in sockets:
        each.close()
    return ports
