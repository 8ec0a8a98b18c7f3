"""A Slurm cluster of one node on this machine for one command: `python -m experiments.cluster.local_slurm CMD`.

munge, slurmctld and slurmd, with all that they write in a temporary folder, on loopback and free ports; at the end only
what was started is stopped. Needs root and Debian's slurmctld, slurmd, slurm-client and munge.

Slurm's `sacct` needs a database server; submitit asks it how jobs ended. Here a stand-in of that name answers out of
`scontrol show job`.
"""

import contextlib
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")

CONFIGURATION = """
ClusterName=here
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port_ctld}
SlurmdPort={port_d}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0,default_queue_depth=200
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=here Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""

SACCT = """#!{python}
import re, subprocess, sys
words = sys.argv[1:]
wanted = [words[place + 1] for place, word in enumerate(words) if word == "-j"]
print("JobID|State|NodeList")
for job in dict.fromkeys(name.split("_")[0] for name in wanted):
    told = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True).stdout
    for line in told.splitlines():
        value = dict(re.findall(r"(\\w+)=(\\S*)", line))
        name = value["JobId"]
        if "ArrayJobId" in value:
            name = value["ArrayJobId"] + "_" + value["ArrayTaskId"]
        print(f"{{name}}|{{value['JobState']}}|{{value.get('NodeList', '')}}")
"""


def missing_programs() -> list[str]:
    """What has to be installed first."""
    os.environ["PATH"] += ":/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextlib.contextmanager
def running(*, cpus: int = 2) -> Iterator[Mapping[str, str]]:
    """Start the cluster; yields what a command's environment needs to find it.

    Args:
        cpus: that the node says it has; a job takes one unless it asks for more.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    folder.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield _start(folder, started, cpus=cpus)
    finally:
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", "--quiet", "--user=root"], env=environment, timeout=20, check=False)
            time.sleep(1)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, started: list[subprocess.Popen[bytes]], *, cpus: int) -> Mapping[str, str]:
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(128))
    host, (port_ctld, port_d) = platform.node().split(".")[0], _free_ports(2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 512
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=host,
            folder=folder,
            first_job=1000 + secrets.randbelow(10**6),  # no number of an earlier such cluster comes again
            port_ctld=port_ctld,
            port_d=port_d,
            cpus=cpus,
            memory=memory,
        ).strip()
        + "\n"
    )
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    sacct = folder / "bin" / "sacct"
    sacct.write_text(SACCT.format(python=sys.executable))
    sacct.chmod(0o755)
    environment = {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin",
    }

    def daemon(*words: str) -> None:
        log = (folder / f"{words[0]}.out").open("wb")
        started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=folder))

    daemon(
        "munged",
        "--foreground",
        "--force",
        f"--key-file={key}",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid",
        f"--log-file={folder}/munge.log",
        f"--seed-file={folder}/munge.seed",
    )
    _until(lambda: (folder / "munge.socket").exists(), folder)
    daemon("slurmctld", "-D")
    daemon("slurmd", "-D", "-N", host)

    def idle() -> bool:
        command = ["sinfo", "--noheader", "--format=%T"]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
        return told.stdout.strip() == "idle"

    _until(idle, folder)
    return {name: environment[name] for name in ("SLURM_CONF", "PATH")}


def _until(ready: object, folder: Path, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        if time.monotonic() > end:
            told = "\n".join(f"{path.name}: {path.read_text()[-1000:]}" for path in sorted(folder.glob("*.[lo]*")))
            raise RuntimeError(f"Slurm did not start:\n{told}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    with running() as found:
        sys.exit(subprocess.run(sys.argv[1:], env={**os.environ, **found}, check=False).returncode)
