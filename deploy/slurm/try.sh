#!/usr/bin/env bash
# Tries deploy/slurm/merge.sh on a Slurm of one node, made here on the loopback: the bundled example in eight shares, two of which
# are killed midway, joined to the bytes of a single run. Needs root, and Debian's slurm-wlm and munge.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/killed_once.sh

main() {
  program=${ESMERGE:-$PWD/target/release/esmerge}
  work=$(mktemp -d)
  trap 'stop "$work"' EXIT
  start "$work"
  export ESMERGE="$work/esmerge" ESMERGE_DEVICE=cpu
  killed_once SLURM_ARRAY_TASK_ID 3 6

  "$program" merge examples/vision/recipe.yaml "$work/alone" -q
  deploy/slurm/merge.sh examples/vision/recipe.yaml "$work/shared" --shards 8 --esmerge "--journal-every 0"
  for _ in $(seq 120); do
    [ -e "$work/shared" ] && break
    sleep 1
  done
  squeue
  [ -e "$work/shared" ] || { echo "nothing was joined"; tail -n 5 "$work"/shared.logs/*; exit 1; }
  diff -r "$work/alone" "$work/shared"
  [ ! -e "$work/shared.esmerge" ]
  [ "$(cat "$work"/shared.logs/share-*.log | grep -c 'ended with 137')" = 2 ]
  echo "8 shares, 2 of them killed midway, joined to the bytes of a single run"
}

start() {
  local work=$1 host
  host=$(hostname -s)
  grep -q "$host" /etc/hosts || echo "127.0.0.1 $host" >>/etc/hosts
  mkdir -p "$work"/{state,spool,run} /run/munge
  chmod 755 "$work"
  [ -s /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none; }
  chown munge: /etc/munge/munge.key /run/munge
  chmod 400 /etc/munge/munge.key
  pgrep -x munged >/dev/null || runuser -u munge -- munged
  cat >"$work/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/run/slurmctld.pid
SlurmdPidFile=$work/run/slurmd.pid
SlurmctldLogFile=$work/run/slurmctld.log
SlurmdLogFile=$work/run/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF="$work/slurm.conf"
  slurmctld
  slurmd
  for _ in $(seq 30); do
    sinfo -h -o %t 2>/dev/null | grep -q idle && return
    sleep 1
  done
  echo "Slurm did not start:" && tail -n 20 "$work"/run/*.log
  exit 1
}

stop() {
  for daemon in slurmctld slurmd; do
    [ -s "$1/run/$daemon.pid" ] && kill "$(cat "$1/run/$daemon.pid")" 2>/dev/null || true
  done
  rm -rf "$1"
}

main "$@"
