#!/bin/bash
# A run on any number of nodes of four GPUs under Slurm. If it is killed, submit it again: it continues from its last checkpoint.
#
# Command:   mkdir -p outputs/logs && sbatch params/cluster/train.sh params/paper.yaml
#            two nodes: sbatch --nodes 2 params/cluster/train.sh params/paper.yaml
# Hardware:  nodes of four GPUs; outputs/ on a file system that all nodes share; text prepared by corpus_array.sh
# Time:      paper.yaml: about 19 hours on four H100s at 25 % of their peak, estimated in nbs/reports/scaling.ipynb; not run
# Expected:  the same losses on one node or two; 120 s before the time limit it gets SIGTERM and saves; the same command continues it
#SBATCH --job-name=langsamp
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=outputs/logs/train-%j.log
set -euo pipefail
source .venv/bin/activate
params=${1:?a params file}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=4
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 4 --max-restarts 3 --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_endpoint "$first:29500" -m langsamp.training.pretrain "$params"
