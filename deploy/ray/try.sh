#!/usr/bin/env bash
# Tries esmerge_ray.py on a Ray cluster of this machine: the bundled example in eight shares, two of which are killed midway, joined
# to the bytes of a single run. Needs a Python with `ray` (PYTHON names it).
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${ESMERGE:-$PWD/target/release/esmerge}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ESMERGE_DEVICE=cpu RAY_USAGE_STATS_ENABLED=0

. deploy/killed_once.sh
killed_once RAY_ESMERGE_SHARD 2 5

"$program" merge examples/vision/recipe.yaml "$work/alone" -q
"${PYTHON:-python3}" deploy/ray/esmerge_ray.py examples/vision/recipe.yaml "$work/shared" --shards 8 --files 2 \
  --esmerge "$work/esmerge" -- --journal-every 0
diff -r "$work/alone" "$work/shared"
[ ! -e "$work/shared.esmerge" ] && [ -e "$work/killed-2" ] && [ -e "$work/killed-5" ]
echo "8 shares, 2 of them killed midway, joined to the bytes of a single run"
