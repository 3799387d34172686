#!/bin/bash
# llmtool in a real Slurm: two nodes on this machine, each a network of its own with a name of its own.
#
#     apt-get install slurm-wlm munge iproute2        # as root; on a machine that is yours alone
#     scripts/checks/slurm.sh > scripts/benchmarks/results/slurm.txt
#
# Needs `llmtool` on the PATH. Each line: what was done, what came of it. Everything is taken away at the end.
set -uo pipefail
cd "$(dirname "$0")/../.."
D=$(mktemp -d); chmod 755 "$D"; NET=10.231.0
export SLURM_CONF=$D/slurm.conf OMP_NUM_THREADS=1 TORCH_CPP_LOG_LEVEL=ERROR PYTHONPATH=$PWD
unset MASTER_ADDR MASTER_PORT

down() {
  for one in "$D"/*.pid; do kill "$(cat "$one")" 2>/dev/null; done; sleep 1
  for n in 1 2; do ip netns del n$n; done; ip link del llmtool0; rm -rf "$D"
}

up() {
  mkdir "$D/state"; trap down EXIT
  printf '127.0.0.1 localhost\n%s n1\n%s n2\n%s %s\n' $NET.1 $NET.2 $NET.254 "$(hostname)" > "$D/hosts"
  ip link add llmtool0 type bridge; ip addr add $NET.254/24 dev llmtool0; ip link set llmtool0 up
  for n in 1 2; do
    ip netns add n$n; ip link add llmtool$n type veth peer name eth0 netns n$n
    ip link set llmtool$n master llmtool0 up; ip -n n$n addr add $NET.$n/24 dev eth0
    ip -n n$n link set eth0 up; ip -n n$n link set lo up
  done
  head -c 1024 /dev/urandom > "$D/key"; chmod 600 "$D/key"
  munged --force --key-file "$D/key" --socket "$D/munge" --pid-file "$D/munge.pid" --log-file "$D/munge.log" \
    --seed-file "$D/seed"
  cat > "$SLURM_CONF" <<END
ClusterName=check
SlurmctldHost=$(hostname)($NET.254)
SlurmUser=root
AuthInfo=socket=$D/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/%n
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/%n.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
LaunchParameters=use_interactive_step
NodeName=n1 NodeAddr=$NET.1 CPUs=2 RealMemory=2000
NodeName=n2 NodeAddr=$NET.2 CPUs=2 RealMemory=2000
PartitionName=all Nodes=n[1-2] Default=YES State=UP
END
  slurmctld
  for n in 1 2; do
    nsenter --net=/run/netns/n$n unshare --uts --mount \
      sh -c "hostname n$n; mount --bind $D/hosts /etc/hosts; exec slurmd"
  done
  for _ in {1..30}; do [ "$(sinfo -h -o %D -t idle)" = 2 ] && return; sleep 1; done
  echo "the nodes did not come"; exit 1
}

said() { printf '%-42s %s\n' "$1" "$2"; }
sets() { # of a run: options for every command
  echo --set run=$D/$1 --set device=cpu --set devices=cpu:1 --set train.batch=16 --set train.micro_batch=8 \
    --set train.log_every=1 --set finetune=null --set train.budget.steps=${2:-20}
}
submit() { # RUN STEPS [option of launch ...]: the job of two nodes, its number
  llmtool launch --slurm configs/tabular/iris.yaml --nodes 2 $(sets $1 $2) "${@:3}" > "$D/$1.sh"
  sbatch --parsable -o "$D/$1.out" "$D/$1.sh"
}
steps() { # RUN COUNT: until so many are made
  until [ "$(cat "$D/$1/train/metrics.jsonl" 2>/dev/null | wc -l)" -ge $2 ]; do sleep 0.1; done
}
ended() { # JOB: until it is; its state and exit code
  while squeue -h -j $1 2>/dev/null | grep -q .; do sleep 0.3; done
  scontrol show job $1 | grep -oE "JobState=\w+|ExitCode=\S+" | sort -r | tr '\n' ' '
}
task() { # RANK: the process of `llmtool train`
  for one in $(ip netns pids n$(($1 + 1))); do
    readlink /proc/$one/exe | grep -q python && grep -qz '^train$' /proc/$one/cmdline && echo $one
  done | head -n 1
}
error() { python3 -c "import json, sys; print(json.load(open(sys.argv[1]))['error'])" "$D/$1/train/result.json"; }
apart() { # RUN RUN: how far their losses are apart, relative
  python3 - "$D/$1" "$D/$2" <<'END'
import json, sys
rows = [map(json.loads, open(f"{run}/train/metrics.jsonl")) for run in sys.argv[1:]]
one, two = [{row["step"]: row["loss"] for row in run if "loss" in row} for run in rows]
assert one.keys() == two.keys(), (len(one), len(two))
print(f"{len(one)} steps, {max(abs(one[step] / two[step] - 1) for step in one):.1e} apart")
END
}

up
iris="configs/tabular/iris.yaml"
said "Slurm, llmtool" "$(sinfo --version), $(llmtool --version), $(date +%F)"
llmtool train $iris $(sets one) > "$D/one.out" 2>&1
J=$(submit two 20); said "sbatch, two nodes" "$(ended $J)$(apart two one)"
J=$(submit fsdp 20 --set parallel.data=fsdp); said "the same, parallel.data: fsdp" "$(ended $J)$(apart fsdp one)"
srun -N2 -n2 llmtool train $iris $(sets hand) > "$D/hand.out" 2>&1
said "srun -N2 -n2, by hand" "exit $?, $(apart hand one)"
echo "llmtool train $iris $(sets shell); exit" |
  script -qec "salloc -N2 --ntasks-per-node=1" /dev/null > "$D/shell.out" 2>&1
said "in the shell of salloc -N2" "exit $?, $(apart shell one)"

llmtool train $iris $(sets whole 600) > "$D/whole.out" 2>&1
J=$(submit parts 600); steps parts 50; scancel $J; said "scancel of two" "$(ended $J)$(error parts)"
J=$(submit parts 600 --nodes 1); steps parts 300; scancel $J
said "gone on with by one, scancel" "$(ended $J)$(error parts)"
J=$(submit parts 600); said "gone on with by two" "$(ended $J)$(apart parts whole)"

for rank in 1 0; do
  J=$(submit killed$rank 100000); steps killed$rank 20; sleep 2; kill -9 "$(task $rank)"
  said "kill -9 of rank $rank" "$(ended $J)$(error killed$rank)"
done
J=$(submit time 10000000 --time 3); said "--time 3" "$(ended $J)$(error time)"
srun -N2 -n2 llmtool train $iris $(sets wrong) --set train.stepz=3 > "$D/wrong.out" 2>&1
said "a wrong key" "exit $?, $(grep -c ^llmtool: "$D/wrong.out") message: $(grep ^llmtool: "$D/wrong.out")"
