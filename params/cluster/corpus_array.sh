#!/bin/bash
# Corpus preparation as a Slurm array: each task writes the shards of some languages; runs then find them ready.
#
# Command:   mkdir -p outputs/logs && sbatch params/cluster/corpus_array.sh params/paper.yaml
#            more or fewer tasks: sbatch --array=0-7 params/cluster/corpus_array.sh params/paper.yaml
# Hardware:  4 cores and 8 GB per task; outputs/ on a file system that all nodes share, with locks
# Time:      an hour for the paper's corpus (600 GB) on 64 tasks of 4 cores, estimated from the speed on one core; not run
# Expected:  a line `task I of N: M shards are there` in each log; submit a killed task again with the same command
#SBATCH --job-name=langsamp-corpus
#SBATCH --array=0-63
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=outputs/logs/corpus-%A-%a.log
set -euo pipefail
source .venv/bin/activate
export OMP_NUM_THREADS=1
python -m langsamp.training.shard_tasks "${1:?a params file}" --task "$SLURM_ARRAY_TASK_ID" --of "$SLURM_ARRAY_TASK_COUNT" \
    --processes "${SLURM_CPUS_PER_TASK:-1}"
