#!/usr/bin/env bash
# A real SLURM of one node, for tests: `cluster.sh start FOLDER` prints "export SLURM_CONF=...", `cluster.sh stop FOLDER`
# ends it. Debian's packages are installed where they are missing; so it needs Debian (or Ubuntu) and root. All of the
# cluster lives in FOLDER (key, socket, ports, logs): several may run side by side, besides a SLURM of the machine's own.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"

fail() { echo "cluster.sh: $*" >&2; exit 1; }
usage() { fail "want: cluster.sh start FOLDER, or cluster.sh stop FOLDER"; }

install() {
  local program missing=""
  for program in munged slurmctld slurmd sbatch; do command -v "$program" >/dev/null || missing="$program"; done
  [ -n "$missing" ] || return 0
  command -v apt-get >/dev/null || fail "$missing is missing, and this is no Debian to install it on"
  {
    apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge
  } >"$folder/install.log" 2>&1 || fail "slurm-wlm and munge cannot be installed: $(tail -n 1 "$folder/install.log")"
}

free_ports() { # two ports that nobody listens on
  python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for each in sockets: each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))'
}

configure() {
  local controller_port daemon_port cores
  read -r controller_port daemon_port < <(free_ports)
  # Two tasks at least, on a machine of one core too.
  cores=$(nproc); [ "$cores" -ge 2 ] || cores=2
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$daemon_port
# Ports of runs come from job numbers, which two clusters of one machine must not share.
FirstJobId=$controller_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# A job that is requeued starts again after this many seconds (120 by default).
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=60
# Jobs in "urgent" take the place of those in "batch", which are told a minute before.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=batch Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
}

start() {
  [ "$(id -u)" -eq 0 ] || fail "SLURM's daemons need root here"
  mkdir -p "$folder"
  folder=$(cd "$folder" && pwd -P)
  [ "${#folder}" -lt 90 ] || fail "$folder: too long for the name of a socket in it; give a shorter folder"
  [ ! -e "$folder/slurmctld.pid" ] || fail "$folder: a cluster runs here already"
  install
  export SLURM_CONF="$folder/slurm.conf"
  host=$(hostname -s)
  mkdir -p "$folder/state" "$folder/spool"
  (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
  configure
  munged --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" --log-file="$folder/munged.log" 2>>"$folder/start.log"
  slurmctld 2>>"$folder/start.log"
  slurmd 2>>"$folder/start.log"
  for _ in $(seq 120); do
    [ "$(sinfo --noheader --format=%t --partition=batch 2>/dev/null)" != idle ] || { echo "export SLURM_CONF=$SLURM_CONF"; return; }
    sleep 0.5
  done
  tail -n 5 "$folder"/*.log >&2
  stop
  fail "the node did not come up within a minute; see the ends of the logs above"
}

jobs_left() { # processes of this cluster's jobs: a job may ignore a signal for long, and SLURM waits for it
  local environment
  for environment in $(grep -lszxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ); do
    if grep -qsz ^SLURM_JOB_ID= "$environment" || grep -qsx slurmstepd "${environment%environ}comm"; then
      environment=${environment#/proc/}
      echo "${environment%/environ}"
    fi
  done
}

stop() {
  [ -d "$folder" ] || fail "$folder: there is no such folder"
  folder=$(cd "$folder" && pwd -P)
  export SLURM_CONF="$folder/slurm.conf"
  local daemon pid
  if [ -e "$folder/slurmctld.pid" ]; then
    squeue --noheader --format=%A 2>/dev/null | xargs --no-run-if-empty scancel 2>/dev/null || true
  fi
  jobs_left | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
  for daemon in slurmd slurmctld munged; do
    [ -s "$folder/$daemon.pid" ] || continue
    pid=$(cat "$folder/$daemon.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
    rm -f "$folder/$daemon.pid"
  done
}

[ $# -eq 2 ] || usage
folder=$2
case $1 in start) start ;; stop) stop ;; *) usage ;; esac
