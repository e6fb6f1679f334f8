import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
TEMPLATES = [path for path in SCRIPTS if "#SBATCH" in path.read_text()]
JOBS = [path for path in TEMPLATES if "ttd_job" in path.read_text()]  # the others begin anew where they are stopped


def by_name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", SCRIPTS, ids=by_name)
def test_every_script_is_valid_bash(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SCRIPTS, ids=by_name)
def test_every_script_passes_shellcheck(path):
    done = subprocess.run(["shellcheck", "-x", str(path)], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", TEMPLATES, ids=by_name)
def test_a_template_requeues_and_appends_to_its_log(path):
    asked = set(re.findall(r"^#SBATCH --([a-z-]+)", path.read_text(), re.M))
    assert {"requeue", "open-mode", "output", "time"} <= asked
    assert ("signal" in asked) == (path in JOBS)
    assert not {"account", "partition", "qos"} & asked  # the site's, given to sbatch


@pytest.fixture
def cluster(tmp_path):
    """Stand-ins for srun, scontrol and python on the PATH, a checkout with slurm/ in it, and a way to run a template there."""
    programs, root = tmp_path / "bin", tmp_path / "a checkout"
    programs.mkdir()
    shutil.copytree(ROOT / "slurm", root / "slurm")
    said = tmp_path / "requeued"

    def program(name: str, body: str) -> None:
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)

    def submit(step: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        """Run slurm/finetune.sh with ``step`` as the training; returns the process and the ids that were requeued."""
        program(
            "scontrol",
            f'[ "$1" = requeue ] && [ -n "${{NO_REQUEUE:-}}" ] && exit 1; [ "$1" = show ] && echo node1 || echo "$2" >> "{said}"',
        )
        program("sleep", "exit 0")
        program("srun", f'case "$*" in *"socket.gethostname"*) exit 0;; esac\n{step}')
        variables = {"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node1"}
        variables |= {"SLURM_SUBMIT_DIR": str(root), "OUT": str(tmp_path / "run")} | environment
        command = ["bash", str(root / "slurm/finetune.sh"), str(tmp_path / "run"), "--config", "x.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=30)
        return done, said.read_text().split() if said.exists() else []

    program("accelerate", 'printf "%s\\n" "$@" > "$OUT/words"')
    program("python", f'exec "{shutil.which("python3")}" "$@"')
    return submit


def outcome(status: int) -> str:
    return f'echo \'{{"status": {status}}}\' > "$TTD_OUTCOME"'


def test_a_finished_run_is_not_requeued_and_keeps_its_status(cluster):
    done, requeued = cluster(f"{outcome(0)}; exit 0")
    assert (done.returncode, requeued) == (0, []), done.stderr
    done, requeued = cluster(f"{outcome(2)}; exit 1")  # launchers turn 2 into 1
    assert (done.returncode, requeued) == (2, [])


def test_a_failed_step_is_requeued_until_the_restarts_are_used_up(cluster):
    done, requeued = cluster("exit 1")
    assert (done.returncode, requeued) == (1, ["41"])
    assert done.stdout.count("== step ended") == 2  # once more within the job
    done, requeued = cluster("exit 1", SLURM_RESTART_COUNT="10", MAX_RETRIES="0")
    assert (done.returncode, requeued) == (1, ["41"])  # no second line
    assert done.stdout.count("== step ended") == 1


def test_usr1_asks_the_run_to_stop_and_requeues_it(cluster):
    step = 'kill -USR1 $PPID; for i in 1 2 3 4 5 6 7 8 9; do [ -e "$TTD_STOP_FILE" ] && break; /bin/sleep 0.1; done\n'
    done, requeued = cluster(f'{step}[ -e "$TTD_STOP_FILE" ] && {outcome(75)}; exit 1')
    assert requeued == ["41"], done.stdout + done.stderr
    assert "outcome 75, asked to stop 1, cancelled 0" in done.stdout


def test_a_cancelled_job_stays_cancelled(cluster):
    done, requeued = cluster(f"kill -TERM $PPID; /bin/sleep 0.5; {outcome(75)}; exit 1")
    assert requeued == []
    assert "cancelled 1" in done.stdout


def test_an_array_task_requeues_itself_and_not_the_array(cluster):
    _, requeued = cluster("exit 1", SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="3")
    assert requeued == ["40_3"]


def test_the_launch_covers_all_nodes_and_passes_arguments_whole(cluster, tmp_path):
    step = f'while [ "$1" != bash ]; do shift; done; SLURM_NODEID=1 "$@"; {outcome(0)}'  # srun on the second node
    done, _ = cluster(step, SLURM_NNODES="2", SLURM_GPUS_ON_NODE="4")
    words = (tmp_path / "run/words").read_text().splitlines()
    pairs = dict(pairwise(words))
    assert (pairs["--num_machines"], pairs["--num_processes"], pairs["--machine_rank"]) == ("2", "8", "1"), done.stderr
    assert (pairs["--main_process_ip"], pairs["--main_process_port"]) == ("node1", "20451")
    assert words[-4:] == ["ttd/finetune.py", "--config", "x.yaml", f"output_dir={tmp_path / 'run'}"]


def test_a_second_job_in_a_run_folder_is_refused_while_the_first_runs(cluster, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.job").write_text("40\n")
    squeue = tmp_path / "bin/squeue"
    squeue.write_text('#!/bin/bash\n[ "${*: -1}" = 40 ] && echo "40 main ttd-pretrain R"\n')
    squeue.chmod(0o755)
    done, requeued = cluster(outcome(0))
    assert (done.returncode, requeued) == (2, [])
    assert "job 40 is at work there" in done.stdout
    squeue.write_text("#!/bin/bash\nexit 1\n")  # it has ended
    assert cluster(outcome(0))[0].returncode == 0


def test_a_wrong_environment_is_not_tried_on_other_nodes(cluster, tmp_path):
    done, requeued = cluster(outcome(0), TTD_VENV=str(tmp_path))
    assert (done.returncode, requeued) == (2, [])
    assert "holds no bin/activate" in done.stdout


def test_the_file_of_a_site_may_use_what_is_not_set_and_return_what_it_likes(cluster, tmp_path):
    (tmp_path / "site.sh").write_text('echo "modules of $LMOD_SYSTEM"\nfalse\n')
    done, _ = cluster(outcome(0), TTD_SITE=str(tmp_path / "site.sh"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_where_jobs_may_not_queue_themselves_the_log_says_what_to_do(cluster, tmp_path):
    done, _ = cluster("exit 1", NO_REQUEUE="1")
    assert "submit the same once more" in done.stdout


def test_shards_are_staged_whole_and_a_copy_that_broke_off_is_made_again(tmp_path):
    """The copying alone, as srun runs it on a node."""
    text = (ROOT / "slurm/env.sh").read_text()
    script = text[text.index("set -euo pipefail\n    mkdir -p") : text.index("done' stage")] + "done"
    shards, disk = tmp_path / "shards", tmp_path / "disk"
    (shards / "train").mkdir(parents=True)
    (shards / "train/0.tar").write_bytes(b"x" * 1000)
    copy = disk.joinpath(*(shards / "train/0.tar").parts[1:])
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"x" * 10)  # newer than the shard, and short
    command = ["bash", "-c", script, "stage", str(shards)]
    environment = {"PATH": "/usr/bin:/bin", "TTD_STAGED": str(disk), "SLURM_JOB_ID": "7", "SLURM_NODEID": "0"}
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert copy.read_bytes() == b"x" * 1000
    assert [p.name for p in copy.parent.iterdir()] == ["0.tar"]
