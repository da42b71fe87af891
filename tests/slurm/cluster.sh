#!/usr/bin/env bash
# A real SLURM of one node, for tests: `cluster.sh start FOLDER` prints "export SLURM_CONF=...", `cluster.sh stop FOLDER`
# ends it. Debian's packages are installed where they are missing; so it needs Debian (or Ubuntu) and root. All of the
# cluster lives in FOLDER (key, socket, ports, logs): several may run side by side, besides a SLURM of the machine's own.
#
# `cluster.sh start FOLDER 2` makes two machines, n1 and n2, out of this one: each has processes, a name and a network
# card of its own (namespaces of Linux) and shares the files. Their network is that of slurmctld, where commands have to
# run: nsenter --net=/proc/$(cat FOLDER/slurmctld.pid)/ns/net sinfo. `cluster.sh cut FOLDER n2` pulls the cable and the
# plug of one, `cluster.sh crash FOLDER n2` ends all of its processes with the network alive, `cluster.sh boot FOLDER n2`
# starts it again.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"

fail() { echo "cluster.sh: $*" >&2; exit 1; }
usage() { fail "want: cluster.sh start FOLDER [MACHINES], stop FOLDER, or cut|crash|boot FOLDER MACHINE"; }

install() {
  local program missing=""
  for program in munged slurmctld slurmd sbatch ${machines:+ip}; do command -v "$program" >/dev/null || missing="$program"; done
  [ -n "$missing" ] || return 0
  command -v apt-get >/dev/null || fail "$missing is missing, and this is no Debian to install it on"
  {
    apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2
  } >"$folder/install.log" 2>&1 || fail "slurm-wlm, munge and iproute2 cannot be installed: $(tail -n 1 "$folder/install.log")"
}

free_ports() { # two ports that nobody listens on
  python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for each in sockets: each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))'
}

configure() {
  local controller_port daemon_port cores address=127.0.0.1 node nodes=$host kill_wait=60
  read -r controller_port daemon_port < <(free_ports)
  # Two tasks at least, on a machine of one core too.
  cores=$(nproc); [ "$cores" -ge 2 ] || cores=2
  node="NodeName=$host NodeAddr=$address"
  if [ -n "$machines" ]; then
    nodes="n[1-$machines]" address=$network.254 kill_wait=30
    node="NodeName=$nodes NodeAddr=$network.[1-$machines]"
  fi
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host($address)
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
SlurmdSpoolDir=$folder/%n/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n/slurmd.log
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
KillWait=$kill_wait
# Jobs in "urgent" take the place of those in "batch", which are told a minute before.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$node CPUs=$cores State=UNKNOWN
PartitionName=batch Nodes=$nodes Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=$nodes MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
}

start() {
  [ "$(id -u)" -eq 0 ] || fail "SLURM's daemons need root here"
  mkdir -p "$folder"
  folder=$(cd "$folder" && pwd -P)
  [ "${#folder}" -lt 90 ] || fail "$folder: too long for the name of a socket in it; give a shorter folder"
  [ ! -e "$folder/slurmctld.pid" ] || fail "$folder: a cluster runs here already"
  install
  [ -z "$machines" ] || unshare --net --uts --mount --pid --fork --mount-proc true 2>>"$folder/start.log" ||
    fail "this kernel or container allows no namespaces, which several machines on one host are made of"
  export SLURM_CONF="$folder/slurm.conf"
  host=$(hostname -s)
  mkdir -p "$folder/state"
  (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
  configure
  munged --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" --log-file="$folder/munged.log" 2>>"$folder/start.log"
  if [ -n "$machines" ]; then
    start_network
    for number in $(seq "$machines"); do boot "n$number"; done
  else
    mkdir -p "$folder/$host/spool"
    slurmctld 2>>"$folder/start.log"
    slurmd 2>>"$folder/start.log"
  fi
  for _ in $(seq 120); do
    [ "$(inside sinfo --noheader --format=%D%t --partition=batch 2>/dev/null)" != "${machines:-1}idle" ] || {
      echo "export SLURM_CONF=$SLURM_CONF"
      return
    }
    sleep 0.5
  done
  for log in "$folder"/*.log "$folder"/*/*.log; do tail -n 5 "$log" >&2; done
  stop
  fail "the nodes did not come up within a minute; see the ends of the logs above"
}

start_network() { # slurmctld in a network of its own, with the switch that the machines are plugged into
  {
    echo "127.0.0.1 localhost"
    for number in $(seq "$machines"); do echo "$network.$number n$number"; done
  } >"$folder/hosts"
  unshare --net bash -euc '
    ip link set lo up
    ip link add name switch type bridge
    ip address add "$1.254/24" dev switch
    ip link set switch up
    exec slurmctld' - "$network" 2>>"$folder/start.log" || { stop; fail "no network: $(tail -n 1 "$folder/start.log")"; }
  for _ in $(seq 40); do [ ! -s "$folder/slurmctld.pid" ] || break; sleep 0.25; done
}

inside() { # a command in the network of the cluster
  local enter=()
  [ ! -e "$folder/hosts" ] || enter=(nsenter "--net=/proc/$(cat "$folder/slurmctld.pid")/ns/net")
  "${enter[@]}" "$@"
}

boot() { # start a machine, whose processes are all ended with the first, the one in machine.pid
  mkdir -p "$folder/$1/spool"
  setsid unshare --net --uts --mount bash -euc '
    controller=$1 name=$2 address=$3 hosts=$4
    ip link set lo up
    ip link add name eth0 type veth peer name "$name" netns "$controller"
    ip address add "$address/24" dev eth0
    ip link set eth0 up
    nsenter "--net=/proc/$controller/ns/net" ip link set "$name" up master switch
    hostname "$name"
    mount --bind "$hosts" /etc/hosts
    exec unshare --pid --fork --kill-child --mount-proc bash -c "slurmd -D & wait"
  ' - "$(cat "$folder/slurmctld.pid")" "$1" "$network.${1#n}" "$folder/hosts" </dev/null >"$folder/$1/boot.log" 2>&1 &
  echo $! >"$folder/$1/machine.pid"
}

crash() { # end all processes of a machine at once; its kernel takes leave of those they talked to
  local pid
  pid=$(cat "$folder/$1/machine.pid")
  kill -KILL "$pid" 2>/dev/null || true
  for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
  rm "$folder/$1/machine.pid"
}

cut() { # without a word to anybody
  inside ip link delete "$1"
  crash "$1"
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
  local file pid
  if [ -e "$folder/slurmctld.pid" ]; then
    inside squeue --noheader --format=%A 2>/dev/null | inside xargs --no-run-if-empty scancel 2>/dev/null || true
  fi
  jobs_left | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
  for file in "$folder"/*/machine.pid; do
    [ ! -e "$file" ] || crash "$(basename "$(dirname "$file")")"
  done
  for file in "$folder/$(hostname -s)/slurmd.pid" "$folder/slurmctld.pid" "$folder/munged.pid"; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
    rm -f "$file"
  done
}

[ $# -ge 2 ] && [ $# -le 3 ] || usage
folder=$2
export SLURM_CONF="$folder/slurm.conf"
machines="" network=10.0.0
case $1/$# in
  start/2) start ;;
  start/3) machines=$3 && start ;;
  stop/2) stop ;;
  cut/3 | crash/3 | boot/3) [ -e "$folder/hosts" ] && "$1" "$3" ;;
  *) usage ;;
esac
