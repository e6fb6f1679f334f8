# shellcheck shell=bash
# What the templates share, sourced by them. Nothing here is edited: what belongs to a site comes from the environment (sbatch
# --export=ALL,NAME=VALUE or the shell that calls sbatch), or from the file that TTD_SITE names (slurm/site.example.sh).
#
#   TTD_ROOT         the checkout (default: where sbatch was called)
#   TTD_VENV         its virtual environment (default: $TTD_ROOT/.venv)
#   TTD_SITE         a file to source first: module load ..., network variables, containers
#   TTD_LAUNCH       accelerate configuration (default: launch/multi_node.yaml, ZeRO-2; launch/ddp.yaml for DDP)
#   TTD_LAUNCH_ARGS  more arguments of accelerate launch, split at blanks
#   TTD_SRUN_ARGS    more arguments of srun, split at blanks (pyxis: --container-image=...)
#   TTD_WRAP         words before the command on each node, split at blanks (apptainer exec --nv image.sif)
#   TTD_STAGE        a folder of shards that each node copies to its own disk first
#   MAX_RETRIES      how often a step that crashed is started again within the job (default: 1)
#   MAX_RESTARTS     how often a job may requeue itself (default: 10)
#
# A secret (WANDB_API_KEY, HF_TOKEN) belongs into the environment, ~/.netrc or TTD_SITE: a command line is seen by everybody.

: "${TTD_ROOT:=${SLURM_SUBMIT_DIR:-$PWD}}"
cd "$TTD_ROOT" || exit 2
if [ -n "${TTD_VENV:-}" ] && [ ! -f "$TTD_VENV/bin/activate" ]; then
  echo "TTD_VENV=$TTD_VENV holds no bin/activate; give a virtual environment"
  exit 2
fi
set +eu # modules and profiles read what is not set, and return what they like
# shellcheck source=/dev/null
[ -z "${TTD_SITE:-}" ] || . "$TTD_SITE"
# shellcheck source=/dev/null
[ ! -f "${TTD_VENV:=$TTD_ROOT/.venv}/bin/activate" ] || . "$TTD_VENV/bin/activate"
set -euo pipefail

restart=${SLURM_RESTART_COUNT:-0}
: "${MAX_RETRIES:=1}" "${MAX_RESTARTS:=10}" "${TTD_LAUNCH:=launch/multi_node.yaml}" "${TTD_LAUNCH_ARGS:=}"
: "${TTD_SRUN_ARGS:=}" "${TTD_WRAP:=}"

# One process per GPU. (Seen once: no SLURM_GPUS_ON_NODE in a job that started seconds after its node had crashed.)
TTD_GPUS=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-1}}
TTD_GPUS=${TTD_GPUS##*:}
TTD_NODES=${SLURM_NNODES:-1}
mapfile -t ttd_hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${ttd_hosts[0]}
export TTD_ROOT TTD_LAUNCH TTD_LAUNCH_ARGS TTD_WRAP TTD_GPUS TTD_NODES MASTER_ADDR

: "${OMP_NUM_THREADS:=$((${SLURM_CPUS_PER_TASK:-1} / TTD_GPUS > 0 ? ${SLURM_CPUS_PER_TASK:-1} / TTD_GPUS : 1))}"
: "${HF_HUB_OFFLINE:=1}" "${NCCL_DEBUG:=WARN}" "${PYTHONFAULTHANDLER:=1}" "${TORCH_NCCL_ASYNC_ERROR_HANDLING:=1}"
export OMP_NUM_THREADS HF_HUB_OFFLINE NCCL_DEBUG PYTHONFAULTHANDLER TORCH_NCCL_ASYNC_ERROR_HANDLING
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # Slurm 22.05 to 23.02: srun does not inherit it
unset SLURM_EXPORT_ENV                              # sbatch --export=NONE would reach srun's tasks otherwise

ttd_me=$SLURM_JOB_ID # an array task must name itself, or all tasks of the array are requeued
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || ttd_me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# What the log begins with: where, what, which versions. Never variables, which may hold secrets.
ttd_header() {
  echo "== job $ttd_me (${SLURM_JOB_NAME:-}) attempt $restart of at most $MAX_RESTARTS, $(date -Is)"
  echo "== $TTD_NODES nodes ($SLURM_JOB_NODELIST) x $TTD_GPUS processes, first $MASTER_ADDR, commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
}

# srun over all nodes, one task on each, with the site's arguments. One task per node is said here and not to sbatch, which would
# give a job of --nodes=1-2 one node where it could have two. A launcher that is done waits for rank 0's last work as long as it takes.
read -ra ttd_srun <<<"$TTD_SRUN_ARGS"
ttd_srun=(srun "--nodes=$TTD_NODES" "--ntasks=$TTD_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0 "${ttd_srun[@]}")
[ "$TTD_NODES" = 1 ] || ttd_srun+=(--label) # each line begins with the number of its node

ttd_python() { # python, inside the site's container if there is one, once on each node
  # shellcheck disable=SC2016
  "${ttd_srun[@]}" bash -c 'read -ra wrap <<<"$TTD_WRAP"; exec "${wrap[@]}" python "$@"' python "$@"
}

# A bad node should fail in seconds, with its name. Status 2: the environment is wrong, on any node.
ttd_preflight() {
  ttd_python -c 'import os, socket, sys
try:
    import torch
except ImportError as error:
    sys.exit(print(socket.gethostname(), sys.executable, error, "; see TTD_VENV, TTD_WRAP") or 2)
n, wanted = torch.cuda.device_count(), int(os.environ["TTD_GPUS"])
print(socket.gethostname(), "python", sys.version.split()[0], "torch", torch.__version__, n, "GPUs")
if n < wanted and torch.version.cuda:
    sys.exit(f"{socket.gethostname()}: {wanted} GPUs were asked for, torch sees {n}")
if n < wanted:
    print("this torch knows no GPU: everything runs on the CPU")'
}

# Copy the shards that TTD_STAGE names to each node's own disk; readers look there first and verify every sample as always. A file
# appears there whole or not at all, whoever copies it.
ttd_stage() {
  [ -n "${TTD_STAGE:-}" ] || return 0
  export TTD_STAGED="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/ttd-$UID-shards"
  echo "== staging $TTD_STAGE below $TTD_STAGED of each node"
  # shellcheck disable=SC2016
  "${ttd_srun[@]}" bash -c '
    set -euo pipefail
    mkdir -p "$TTD_STAGED" && [ -O "$TTD_STAGED" ] # nobody else may have put it there
    place="$TTD_STAGED$(realpath "$1")"
    cd "$1"
    find . -type f -name "*.tar" -print0 | while IFS= read -rd "" file; do
      [ "$(stat -c %s:%Y "$file")" != "$(stat -c %s:%Y "$place/$file" 2>/dev/null)" ] || continue
      mkdir -p "$(dirname "$place/$file")"
      cp --preserve=timestamps "$file" "$place/$file.$SLURM_JOB_ID.$SLURM_NODEID"
      mv -f "$place/$file.$SLURM_JOB_ID.$SLURM_NODEID" "$place/$file"
    done' stage "$TTD_STAGE"
}

# The status in the file that TTD_OUTCOME names: what accelerate launch and srun hide
ttd_outcome() {
  local status
  status=$(sed -n 's/.*"status": *\([0-9]*\).*/\1/p' "$TTD_OUTCOME" 2>/dev/null) || true
  echo "${status:-none}"
}

# One launcher per node, one process per GPU. Sets rc and status.
ttd_step() {
  export TTD_WORLD=$((TTD_NODES * TTD_GPUS)) # every process compares its world with this
  export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 11 + retry) % 20000)) # a fixed port collides on shared nodes
  export TTD_OUTCOME="$run_dir/.outcome.$ttd_me.$restart.$retry"
  # Single quotes: SLURM_NODEID differs from task to task. In the background: a trap waits for a foreground command.
  # shellcheck disable=SC2016
  "${ttd_srun[@]}" bash -c '
    read -ra more <<<"$TTD_LAUNCH_ARGS"
    read -ra wrap <<<"$TTD_WRAP"
    exec "${wrap[@]}" accelerate launch --config_file "$TTD_LAUNCH" --num_machines "$TTD_NODES" --machine_rank "$SLURM_NODEID" \
      --num_processes "$TTD_WORLD" --deepspeed_multinode_launcher standard --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
      "${more[@]}" "$@"' accelerate "$@" &
  local step=$!
  rc=0
  wait "$step" || rc=$?
  while kill -0 "$step" 2>/dev/null; do # a trap ends a wait early
    rc=0
    wait "$step" || rc=$?
  done
  status=$(ttd_outcome)
  rm -f "$TTD_OUTCOME"
  echo "== step ended: srun $rc, outcome $status, asked to stop $asked, cancelled $cancelled"
}

# Two jobs in one run folder would overwrite each other's states; the tasks of one array share theirs.
ttd_alone() {
  local other
  other=$(cat "$run_dir/.job" 2>/dev/null) || true
  if [ -n "$other" ] && [ "$other" != "${ttd_me%_*}" ] && [ -n "$(squeue -h -t RUNNING -j "$other" 2>/dev/null)" ]; then
    echo "$run_dir: job $other is at work there; wait for it, or scancel $other"
    exit 2
  fi
  echo "${ttd_me%_*}" >"$run_dir/.job"
}

# ttd_job ENTRY RUN_DIR ARGUMENTS... : run one entry over all nodes of the job, requeue if there is more to do, exit
ttd_job() {
  entry=$1 run_dir=$2
  shift 2
  mkdir -p "$run_dir"
  ttd_header
  ttd_alone
  # One name per attempt: a late file cannot stop the next one. On the shared disk, so that it reaches every node.
  rm -f "$run_dir/.stop.$ttd_me".* "$run_dir/.outcome.$ttd_me".*
  export TTD_STOP_FILE="$run_dir/.stop.$ttd_me.$restart"

  # A second way, should the signal not arrive: a minute before the end all ranks stop by the clock.
  local end
  end=$(scontrol show job -o "$ttd_me" | sed -n 's/.* EndTime=\([0-9][^ ]*\).*/\1/p') || true
  if [ -n "$end" ] && end=$(date -d "$end" +%s) && [ "$end" -gt $(($(date +%s) + 120)) ]; then
    export TTD_STOP_AT=$((end - 60))
  fi

  # Handlers set a variable and touch a file, no more: a command substitution in one made bash 5.2 fail.
  asked=0 cancelled=0 retry=0
  trap 'asked=1; : > "$TTD_STOP_FILE"' USR1
  trap 'cancelled=1; : > "$TTD_STOP_FILE"' TERM # scancel: whoever requeues here brings a cancelled job back

  status=none
  while :; do
    rc=0
    ttd_preflight && ttd_stage || rc=$?
    if [ "$rc" = 2 ]; then
      exit 2
    elif [ "$rc" != 0 ]; then
      echo "== a node named above is not fit, or its disk did not take the shards; submit with --exclude=NODE if this goes on"
      break
    fi
    ttd_step "$entry" "$@" "output_dir=$run_dir"
    # It crashed, and nobody asked for an end: once more without waiting in the queue, if the nodes are there.
    if [ "$status" != none ] || [ "$asked$cancelled" != 00 ] || [ "$retry" -ge "$MAX_RETRIES" ]; then
      break
    fi
    retry=$((retry + 1))
    echo "== once more within the job ($retry of at most $MAX_RETRIES); where ranks stood still: $run_dir/stacks"
  done
  trap '' USR1
  trap - TERM # from here on it ends this script
  rm -f "$TTD_STOP_FILE"
  case $status in
    0 | 2 | 3) exit "$status" ;; # done, bad input, failed items: starting again changes nothing
  esac
  if [ "$cancelled" = 1 ]; then
    sleep 600 # Slurm ends this script: after scancel for good, after a preemption with grace to queue it again
  elif [ "$restart" -lt "$MAX_RESTARTS" ]; then # stopped, crashed, or never started
    echo "== requeue $ttd_me ($((restart + 1)) of at most $MAX_RESTARTS)"
    scontrol requeue "$ttd_me" && sleep 120 || # the requeue ends this script
      echo "== this site lets no job queue itself again; submit the same once more, or as --array=1-10%1"
  fi
  [ "$rc" != 0 ] || rc=75
  exit "$rc"
}
