"""A real Slurm on this machine: munged, slurmctld and a slurmd per node, each host in network, name and mount namespaces of its
own, so that a node can be powered off and its cable pulled.

    python tests/slurm/cluster.py up          # root; Debian's slurmctld slurmd slurm-client munge iproute2 must be there
    python tests/slurm/cluster.py on ctl sinfo
    python tests/slurm/cluster.py down

``ctl`` is the login node, ``node1``, ``node2``, ... compute. Nodes claim 64 CPUs, 512 GB and 8 GPUs each (character devices like
/dev/null). There are no cgroups, no accounting and no way out of the namespaces. Partitions: ``main``; ``high`` preempts ``low``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = Path("/var/tmp/ttd-slurm")  # munged wants its socket below folders that everybody may enter
NODES = ("node1", "node2", "node3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "nsenter", "unshare")
DOWN_AFTER_S = 30  # SlurmdTimeout; 300 is usual

CONF = """ClusterName=mini
SlurmctldHost=ctl({ctl})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits: 120 s is usual, 5 the least that is accepted
AuthInfo=socket={folder}/munge/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# a preempted job gets the signal it asked for, not only TERM
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
SlurmdTimeout={down_after_s}
SlurmctldTimeout=10
# at 5 the order to kill times out, and is given again a minute later, to the next attempt of the job
MessageTimeout=10
KillWait=5
MinJobAge=3600
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
{nodes}
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=INFINITE DefaultTime=60
PartitionName=main Default=YES PriorityTier=5 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""


def address(host: str) -> str:
    return "10.231.78." + ("1" if host == "ctl" else str(10 + int(host.removeprefix("node"))))


def namespace(host: str) -> str:
    return f"ttd-{host}"


def run(*words: str, **more: object) -> str:
    done = subprocess.run(words, capture_output=True, text=True, **more)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.1)


def why_not() -> str | None:
    """Why no cluster can be started here; None where it can."""
    if os.geteuid():
        return "needs root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge iproute2"
    name = "ttd-probe"
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    link = ["ip", "-n", name, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"]
    made = made if made.returncode else subprocess.run(link, capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"no network namespaces here: {made.stderr.strip()}" if made.returncode else None


def pid_in(path: Path) -> int | None:
    """The process of a pid file, if it lives and is ours: numbers are used again."""
    try:
        pid = int(path.read_text())
        return pid if str(FOLDER).encode() in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except (OSError, ValueError):
        return None


def inside(host: str, *words: str) -> list[str]:
    """The command that runs ``words`` on a host: its network, its name, its /etc/hosts."""
    anchor = pid_in(FOLDER / f"anchor-{host}.pid")
    if anchor is None:
        raise RuntimeError(f"no host {host}: start the cluster first")
    # not `ip netns exec`: it mounts /sys anew, and slurmd finds no cgroups then
    return ["nsenter", f"--target={anchor}", "--net", "--uts", "--mount", f"--wd={os.getcwd()}", "--", *words]


def on(host: str, *words: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command on a host and return what it prints."""
    variables = {**os.environ, "SLURM_CONF": str(FOLDER / "etc/slurm.conf"), **(env or {})}
    command = inside(host, *words)
    if cwd:
        command[command.index("--") - 1] = f"--wd={cwd}"
    return run(*command, env=variables)


def start_node(host: str, *flags: str) -> None:
    on(host, "slurmd", "-f", str(FOLDER / "etc/slurm.conf"), "-N", host, *flags)


def power_off(host: str) -> None:
    """Every process of the host dies at once."""
    anchor = pid_in(FOLDER / f"anchor-{host}.pid")
    for pid in map(int, run("ip", "netns", "pids", namespace(host)).split()):
        if pid != anchor:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def power_on(host: str) -> None:
    start_node(host, "-b")


def cable(host: str, *, plugged: bool) -> None:
    """Pull the network cable of a host, or put it back: its peers see silence, nothing is closed."""
    link = f"v{host.removeprefix('node')}"
    run("ip", "-n", namespace("ctl"), "link", "set", link, "up" if plugged else "down")


def state(job: str) -> dict[str, str]:
    """What Slurm says of a job (or of one task of an array, ``12_3``), by the names of ``scontrol show job``."""
    words = on("ctl", "scontrol", "show", "job", "-o", job).split()
    return dict(word.partition("=")[::2] for word in words if "=" in word)


def up() -> None:
    """Start the cluster; one that is there already goes down first."""
    down()
    for name in ("etc", "log", "state", "munge", "dev", *(f"spool-{host}" for host in NODES)):
        (FOLDER / name).mkdir(parents=True)
    hosts = ["127.0.0.1 localhost", *(f"{address(h)} {h}" for h in ("ctl", *NODES))]
    # torch looks its peers up by IPv4-mapped address, and prints a warning per connection where that has no name
    hosts += [f"::ffff:{address(h)} {h}.mini" for h in NODES]
    (FOLDER / "hosts").write_text("\n".join(hosts) + "\n")
    for host in ("ctl", *NODES):
        make_host(host)
    ctl = namespace("ctl")
    run("ip", "-n", ctl, "link", "add", "br0", "type", "bridge")
    run("ip", "-n", ctl, "addr", "add", f"{address('ctl')}/24", "dev", "br0")
    run("ip", "-n", ctl, "link", "set", "br0", "up")
    for host in NODES:
        link, net = f"v{host.removeprefix('node')}", namespace(host)
        run("ip", "-n", ctl, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", net)
        run("ip", "-n", ctl, "link", "set", link, "master", "br0", "up")
        run("ip", "-n", net, "addr", "add", f"{address(host)}/24", "dev", "eth0")
        run("ip", "-n", net, "link", "set", "eth0", "up")
    start_daemons()


def make_host(host: str) -> None:
    """The namespaces of a host, held by one process that sleeps."""
    run("ip", "netns", "add", namespace(host))
    run("ip", "-n", namespace(host), "link", "set", "lo", "up")
    script = f"""hostname {host}; mount --bind {FOLDER}/hosts /etc/hosts; echo $$ > {FOLDER}/anchor-{host}.pid
        exec -a "anchor of {host} {FOLDER}" sleep infinity"""
    command = [
        "nsenter",
        f"--net=/run/netns/{namespace(host)}",
        "unshare",
        "--uts",
        "--mount",
        "--propagation",
        "slave",
    ]
    nothing = subprocess.DEVNULL
    subprocess.Popen([*command, "bash", "-c", script], stdin=nothing, stdout=nothing, stderr=nothing)
    wait_for(lambda: pid_in(FOLDER / f"anchor-{host}.pid"), 10, f"host {host}")


def start_daemons() -> None:
    for i in range(8):
        os.mknod(FOLDER / f"dev/gpu{i}", 0o20666, os.makedev(1, 3))  # a count without files is refused
    (FOLDER / "etc/gres.conf").write_text(f"Name=gpu File={FOLDER}/dev/gpu[0-7]\n")
    nodes = "\n".join(
        f"NodeName={h} NodeAddr={address(h)} CPUs=64 RealMemory=512000 Gres=gpu:8 State=UNKNOWN" for h in NODES
    )
    conf = CONF.format(folder=FOLDER, ctl=address("ctl"), nodes=nodes, down_after_s=DOWN_AFTER_S)
    (FOLDER / "etc/slurm.conf").write_text(conf)
    munge = FOLDER / "munge"
    (munge / "munge.key").write_bytes(os.urandom(1024))
    (munge / "munge.key").chmod(0o400)
    files = [f"--{name}={munge}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket", "seed-file")]
    run("munged", *files, f"--pid-file={munge}/munged.pid", f"--log-file={munge}/munged.log")
    on("ctl", "slurmctld", "-f", str(FOLDER / "etc/slurm.conf"))
    for host in NODES:
        start_node(host)
    wait_for(lambda: set(NODES) <= set(idle()), 30, f"nodes idle (see {FOLDER}/log)")


def idle() -> list[str]:
    try:
        return on("ctl", "sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split()
    except RuntimeError:  # the controller is not there yet
        return []


def down() -> None:
    """End everything that runs on the hosts, and remove them with their logs."""
    for host in (*NODES, "ctl"):
        listed = subprocess.run(["ip", "netns", "pids", namespace(host)], capture_output=True, text=True)
        for pid in map(int, listed.stdout.split()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["ip", "netns", "del", namespace(host)], capture_output=True)
    munged = pid_in(FOLDER / "munge/munged.pid")
    if munged:
        os.kill(munged, signal.SIGTERM)
    shutil.rmtree(FOLDER, ignore_errors=True)


def main(words: list[str]) -> None:
    if words[:1] == ["up"]:
        reason = why_not()
        if reason:
            sys.exit(f"no cluster: {reason}")
        start = time.monotonic()
        up()
        print(f"{len(NODES)} nodes up in {time.monotonic() - start:.1f} s")
    elif words == ["down"]:
        down()
    elif words[:1] == ["on"] and len(words) > 2:
        os.environ["SLURM_CONF"] = str(FOLDER / "etc/slurm.conf")
        command = inside(words[1], *words[2:])
        os.execvp(command[0], command)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
