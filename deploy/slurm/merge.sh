#!/usr/bin/env bash
# Shares a merge out among the tasks of a Slurm array, and joins them when all are done.
#
#   deploy/slurm/merge.sh RECIPE OUT [--shards N] [--esmerge 'FLAGS OF esmerge merge'] [-- SBATCH FLAGS]
#
# Recipe, models and OUT must be reachable by the same paths from every node. Prints the two job numbers.
set -euo pipefail

main() {
  [ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
  local recipe out shards=8 flags=""
  recipe=$(readlink -f "$1") out=$(readlink -m "$2")
  shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      --shards) shards=$2; shift 2 ;;
      --esmerge) flags=$2; shift 2 ;;
      --) shift; break ;;
      *) echo "merge.sh: what is $1? Flags of sbatch come after --" >&2; exit 2 ;;
    esac
  done
  local logs="$out.logs" program array joined
  program=$(command -v "${ESMERGE:-esmerge}") || { echo "merge.sh: esmerge is not on the path; set ESMERGE" >&2; exit 2; }
  mkdir -p "$logs"

  # A task that is preempted, or whose node fails, is queued again by Slurm, and goes on from the journal. One that was killed for
  # its time or memory is tried again by itself, up to three times.
  array=$(sbatch --parsable --requeue --open-mode=append --array="1-$shards" --job-name=esmerge --output="$logs/share-%a.log" "$@" <<SHARE
#!/usr/bin/env bash
for try in 1 2 3; do
  "$program" merge "$recipe" "$out" --shard auto $flags && exit 0
  code=\$?
  [ \$code -eq 2 ] && exit 2   # an error in the recipe or the command line
  echo "try \$try of share \$SLURM_ARRAY_TASK_ID ended with \$code" >&2
done
exit 1
SHARE
  )
  joined=$(sbatch --parsable --requeue --open-mode=append --dependency="afterok:$array" --kill-on-invalid-dep=yes \
    --job-name=esmerge-join --output="$logs/join.log" "$@" <<JOIN
#!/usr/bin/env bash
exec "$program" join "$out" $(join_flags "$flags")
JOIN
  )
  echo "shares: $array, join: $joined, logs: $logs"
}

# Of the flags of a merge those that a join knows too and that its journal does not have.
join_flags() {
  local words found="" i
  read -ra words <<<"$1"
  for ((i = 0; i < ${#words[@]}; i++)); do
    case ${words[i]} in
      --device | --max-memory | --batch-bytes) found+=" ${words[i]} ${words[i + 1]:-}" ;;
      --device=* | --max-memory=* | --batch-bytes=* | --force | --verify | -q | --quiet) found+=" ${words[i]}" ;;
    esac
  done
  echo "$found"
}

main "$@"
