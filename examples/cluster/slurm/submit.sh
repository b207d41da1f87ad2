#!/bin/bash
# Merges in parts by an array of Slurm's tasks, and puts the parts together:
#   ./submit.sh 4 CONFIG OUT [FLAGS OF merge...]
# OUT and the models lie where all nodes see them. Prints the numbers of both jobs.
set -euo pipefail
parts=$1 config=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)

merge=$(sbatch --parsable --array=1-"$parts" "$here/merge.sbatch" "$config" "$out" "${@:4}")
# Where a task fails for good there is nothing to finish: this job goes too, and is submitted again with the task (merge.sbatch says how).
finish=$(sbatch --parsable --dependency=afterok:"$merge" --kill-on-invalid-dep=yes "$here/finish.sbatch" "$out")
echo "$merge $finish"
