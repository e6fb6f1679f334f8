# shellcheck shell=bash
# What the templates share, sourced by them. Everything that belongs to a site comes from the environment, or from the file
# named by TTD_SITE (partition-independent: modules, network variables, paths); nothing here is edited.
#
#   TTD_ROOT      the checkout (default: where sbatch was called)
#   TTD_VENV      its virtual environment (default: $TTD_ROOT/.venv)
#   TTD_SITE      a file to source first (module load ..., NCCL_SOCKET_IFNAME, ...)
#   TTD_LAUNCH    accelerate configuration (default: launch/multi_node.yaml)
#   TTD_LAUNCH_ARGS  more arguments of accelerate launch, split at blanks
#   MAX_RESTARTS  how often a job may requeue itself (default: 10)

# shellcheck source=/dev/null
[ -z "${TTD_SITE:-}" ] || . "$TTD_SITE"
: "${TTD_ROOT:=${SLURM_SUBMIT_DIR:-$PWD}}"
cd "$TTD_ROOT" || exit 2
# shellcheck source=/dev/null
[ ! -f "${TTD_VENV:=$TTD_ROOT/.venv}/bin/activate" ] || . "$TTD_VENV/bin/activate"

restart=${SLURM_RESTART_COUNT:-0}
: "${MAX_RESTARTS:=10}" "${TTD_LAUNCH:=launch/multi_node.yaml}" "${TTD_LAUNCH_ARGS:=}"

# One process per GPU. (Seen once: no SLURM_GPUS_ON_NODE in a job that started seconds after its node had crashed.)
TTD_GPUS=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-1}}
TTD_GPUS=${TTD_GPUS##*:}
TTD_NODES=${SLURM_NNODES:-1}
mapfile -t ttd_hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${ttd_hosts[0]}
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # fixed ports collide on shared nodes
export TTD_ROOT TTD_LAUNCH TTD_LAUNCH_ARGS TTD_GPUS TTD_NODES MASTER_ADDR MASTER_PORT

: "${OMP_NUM_THREADS:=$((${SLURM_CPUS_PER_TASK:-1} / TTD_GPUS > 0 ? ${SLURM_CPUS_PER_TASK:-1} / TTD_GPUS : 1))}"
: "${HF_HUB_OFFLINE:=1}" "${NCCL_DEBUG:=WARN}" "${PYTHONFAULTHANDLER:=1}" "${TORCH_NCCL_ASYNC_ERROR_HANDLING:=1}"
export OMP_NUM_THREADS HF_HUB_OFFLINE NCCL_DEBUG PYTHONFAULTHANDLER TORCH_NCCL_ASYNC_ERROR_HANDLING
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # Slurm 22.05 to 23.02: srun does not inherit it
unset SLURM_EXPORT_ENV                              # sbatch --export=NONE would reach srun's tasks otherwise

# outcome STATUS of the run folder $1: what accelerate launch hides
ttd_outcome() {
  python - "$1/outcome.json" <<'PYTHON' 2>/dev/null || echo none
import json, sys
print(json.load(open(sys.argv[1]))["status"])
PYTHON
}

# ttd_train ENTRY RUN_DIR ARGUMENTS... : run one training over all nodes of the job, requeue if there is more to do, exit
ttd_train() {
  local entry=$1 run_dir=$2
  shift 2
  mkdir -p "$run_dir"
  echo "== job $SLURM_JOB_ID attempt $restart: $TTD_NODES nodes ($SLURM_JOB_NODELIST) x $TTD_GPUS processes, $(git describe --always --dirty 2>/dev/null || true)"
  # One name per attempt: a late file cannot stop the next one. On the shared disk, so that it reaches every node.
  export TTD_STOP_FILE="$run_dir/stop.$SLURM_JOB_ID.$restart"
  rm -f "$run_dir/outcome.json"

  # Handlers set a variable and touch a file, no more: a command substitution in one made bash 5.2 fail.
  asked=0 cancelled=0
  trap 'asked=1; : > "$TTD_STOP_FILE"' USR1
  trap 'cancelled=1; : > "$TTD_STOP_FILE"' TERM # scancel: whoever requeues here brings a cancelled job back

  # A bad node should fail in seconds, with its name.
  srun --kill-on-bad-exit=1 bash -c 'python -c "import socket, torch; print(socket.gethostname(), torch.__version__, torch.cuda.device_count(), \"GPUs\")"' || {
    echo "== preflight failed on a node named above; resubmit with --exclude"
    exit 1
  }

  # Single quotes: SLURM_NODEID differs from task to task. In the background: a trap waits for a foreground command.
  # shellcheck disable=SC2016
  srun --kill-on-bad-exit=1 --wait=60 bash -c '
    read -ra more <<< "$TTD_LAUNCH_ARGS"
    exec accelerate launch --config_file "$TTD_LAUNCH" --num_machines "$TTD_NODES" --machine_rank "$SLURM_NODEID" \
      --num_processes $((TTD_NODES * TTD_GPUS)) --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
      "${more[@]}" "$@"' accelerate "$entry" "$@" "output_dir=$run_dir" &
  local step=$! rc=0
  wait "$step" || rc=$?
  while kill -0 "$step" 2>/dev/null; do # a trap ends a wait early
    rc=0
    wait "$step" || rc=$?
  done

  local status
  status=$(ttd_outcome "$run_dir")
  rm -f "$TTD_STOP_FILE"
  echo "== step ended: srun $rc, outcome $status, asked to stop $asked, cancelled $cancelled"
  case $status in
    0 | 2 | 3) exit "$status" ;; # done, bad input, failed items: starting again changes nothing
  esac
  if [ "$cancelled" = 0 ] && { [ "$asked" = 1 ] || [ "$rc" != 0 ]; } && [ "$restart" -lt "$MAX_RESTARTS" ]; then
    local me=$SLURM_JOB_ID # an array task must name itself, or all tasks of the array are requeued
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "== requeue $me ($((restart + 1)) of at most $MAX_RESTARTS)"
    scontrol requeue "$me"
    sleep 120 # the requeue ends this script
  fi
  [ "$rc" != 0 ] || rc=75
  exit "$rc"
}
