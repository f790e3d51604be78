"""A real Slurm of two nodes on this machine, with its own keys, ports and folders, gone when it is closed.

``low`` is the default partition, whose jobs a job of ``high`` preempts: they get SIGUSR2, then
``GRACE_S`` seconds, and wait in the queue again. Tasks of ``bound`` are bound to their cores; those of the
others may use all cores, because both nodes count the same ones as theirs. An array has at most
``ARRAY_SIZE`` jobs. Nothing of the machine's own Slurm is read or touched.
Run as a program this file is the watcher, which ends the cluster should its tests be killed: their end of the
watcher's standard input closes with them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
GRACE_S = 15
ARRAY_SIZE = 3
CONFIGURATION = """\
ClusterName=signllm
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldParameters=preempt_send_user_signal
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
MinJobAge=3600
MaxArraySize={array_size}
FirstJobId={first_job}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[0-1] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=8000
PartitionName=low Nodes=n[0-1] Default=YES PriorityTier=1 GraceTime={grace_s} MaxTime=INFINITE State=UP \
CpuBind=none
PartitionName=high Nodes=n[0-1] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP CpuBind=none
PartitionName=bound Nodes=n[0-1] PriorityTier=1 MaxTime=INFINITE State=UP CpuBind=core
"""


class Slurm:
    """The running cluster; ``environment`` leads every Slurm command to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        watcher = [sys.executable, __file__, str(self.folder)]
        self._watcher = subprocess.Popen(watcher, stdin=subprocess.PIPE, start_new_session=True)
        for name in ("state", "spool-n0", "spool-n1"):
            (self.folder / name).mkdir()
        host = socket.gethostname().partition(".")[0]
        made = {
            "host": host,
            "folder": self.folder,
            "ports": _free_ports(),
            "grace_s": GRACE_S,
            "array_size": ARRAY_SIZE,
        }
        # Ranks meet at a port that follows from the job's number: two clusters on a machine count apart.
        text = CONFIGURATION.format(**made, first_job=1 + 97 * os.getpid() % 12_000)
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        socket_path = self.folder / "munge.socket"
        files = {"key-file": key, "socket": socket_path}
        files |= {f"{kind}-file": self.folder / f"munge.{kind}" for kind in ("pid", "log", "seed")}
        self._daemon("munged", *(f"--{k}={v}" for k, v in files.items()), "--force", "--foreground")
        until(socket_path.exists, "munged")
        self._daemon("slurmctld", "-D")
        for node in ("n0", "n1"):
            self._daemon("slurmd", "-D", "-N", node)
        until(lambda: self.command("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "low").strip() == "2", self)

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}{command[-1]}.out").open("ab") as output:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=outside_of_jobs() | self.environment,
                    start_new_session=True,
                )
            )

    def command(self, *words: str) -> str:
        """Return what a Slurm command prints, "" where it fails."""
        done = subprocess.run(
            words, env=outside_of_jobs() | self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def states(self) -> dict[str, str]:
        """Return the state of every job, finished ones too, by its id: ``12``, or ``12_0`` in an array."""
        lines = self.command("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)  # type: ignore[misc]

    def wait(self) -> dict[str, str]:
        """Wait until no job waits or runs; return the states of all."""
        unfinished = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "SIGNALING")

        def all_ended() -> bool:
            return not any(state in unfinished for state in self.states().values())

        until(all_ended, self)
        return self.states()

    def field(self, job: str, name: str) -> str:
        """Return one field of ``scontrol show job``, e.g. ``Restarts``."""
        words = self.command("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def preempt(self) -> None:
        """Take both nodes from the jobs of the low partition, for a moment."""
        both = ["--partition", "high", "--nodes", "2", "--exclusive"]
        assert self.command("sbatch", *both, "--output", "/dev/null", "--wrap", "true")

    def ranks(self, **variables: str) -> list[int]:
        """Return the processes that run a verb in this environment, not those that they started."""
        expected = {f"{name}={value}".encode() for name, value in variables.items()}
        pids = []
        for process in self.processes():
            try:
                command, environment = (
                    Path(f"/proc/{process}/{name}").read_bytes().split(b"\0")
                    for name in ("cmdline", "environ")
                )
            except OSError:
                continue
            if b"submitit.core._submit" in command and command[0] != b"srun" and expected <= set(environment):
                pids.append(process)
        return pids

    def cancel(self) -> None:
        """End every job and wait until the nodes are idle."""
        self.command("scancel", "--full", "--user", "root")
        self.wait()

    def stop(self) -> None:
        """End every job and every daemon, whatever state they are in."""
        self.command("scancel", "--full", "--user", "root")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.end_processes()
        if self._watcher:
            self._watcher.communicate()

    def end_processes(self) -> None:
        """Kill whatever still lives in this cluster."""
        for _ in range(100):
            ours = self.processes()
            if not ours:
                return
            for process in ours:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """Return the processes that live in this cluster: their environment names its configuration."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        pids = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    pids.append(int(entry.name))
            except OSError:
                continue
        return [process for process in pids if process != os.getpid()]

    def __str__(self) -> str:
        """Describe nodes and queue, and the last lines of the logs: what a failing test prints."""
        printed = [self.command("sinfo"), self.command("squeue", "-t", "all")]
        for log in sorted(self.folder.glob("*.out")):
            printed.append(f"== {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(printed)


def why_not() -> str | None:
    """Return why no Slurm can be started here, None if one can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no Slurm here, {', '.join(missing)} missing: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "starting a Slurm of one's own needs root"


def outside_of_jobs() -> Mapping[str, str]:
    """Return this process's environment without what an outer job or cluster put there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    return kept | {"PATH": f"{kept.get('PATH', '')}:/usr/sbin:/sbin"}


def until(holds: Callable[[], bool], what: object, timeout_s: float = 600, every_s: float = 0.1) -> None:
    """Wait until a condition holds; fail with what ``what`` says of itself by then."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(every_s)


def _free_ports() -> list[int]:
    """Return a port for slurmctld and two neighbouring ones for the nodes."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, 3):
        ports, sockets = [first, first + 1, first + 2], []
        try:
            for port in ports:
                sockets.append(socket.socket())
                sockets[-1].bind(("", port))
            return ports
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise RuntimeError("no three free ports")


if __name__ == "__main__":
    sys.stdin.read()
    Slurm(Path(sys.argv[1])).end_processes()
