#!/bin/bash
# Build the shards of a study: an array over its subjects, no GPU. Each task builds one subject in OUT_DIR.subjects/SUBJECT; a job
# that waits for the array merges them (slurm/pipeline.sh does so):
#
#   mkdir -p slurm-logs
#   sbatch --array=0-9 [--account=... --partition=...] slurm/build_shards.sh build_paired OUT_DIR "01 02 03 04 05 06 07 08 09 10" \
#     --config configs/shards/X.yaml [key.path=value ...]
#   sbatch --dependency=afterok:JOB slurm/command.sh shards/merge.py inputs=OUT_DIR.subjects output_dir=OUT_DIR
#
# A task that failed is submitted again alone: sbatch --array=3 ... with the same words. What is built already is found and kept.
# A task that is stopped or preempted begins its subject anew. Site settings: see slurm/env.sh.
#SBATCH --job-name=ttd-build-shards
#SBATCH --nodes=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --array=0-0
#SBATCH --output=slurm-logs/%x-%A_%a.out
set -euo pipefail
entry=${1:?give build_paired or build_unlabelled first} out_dir=${2:?give the output folder next} subjects=${3:?give the subjects next, in quotes}
shift 3
# Slurm runs a copy of this script from its spool folder: the checkout is where sbatch was called.
# shellcheck source=slurm/env.sh
. "${TTD_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/env.sh"
read -ra subjects <<<"$subjects"
subject=${subjects[$SLURM_ARRAY_TASK_ID]:-}
if [ -z "$subject" ]; then
  echo "task $SLURM_ARRAY_TASK_ID has no subject: ${#subjects[@]} are named; submit with --array=0-$((${#subjects[@]} - 1))"
  exit 2
fi
ttd_header
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
if [ -f "$out_dir/build.json" ]; then # merged already, if the words are the same; refused if not
  ttd_python "shards/$entry.py" "$@" "output_dir=$out_dir"
  exit
fi
ttd_python "shards/$entry.py" "$@" "only_subjects=[\"$subject\"]" "output_dir=$out_dir.subjects/$subject"
