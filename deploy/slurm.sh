#!/usr/bin/env bash
# Runs cfdist on all hosts of a Slurm allocation; settings are those of main.py:
#   sbatch --nodes=4 deploy/slurm.sh devices=8 model.batch=16 output_dir=/shared/runs/first
# The checkout, its .venv (./run.sh makes it), pictures and model have the same paths on every host.
# CFDIST_CHECKOUT=...     the checkout; by default the folder in which sbatch was called
# CFDIST_PYTHON=...       its Python; by default that of .venv in the checkout
# CFDIST_RAY_FOLDER=...   Ray's files, a short path; by default /tmp/ray_<job>
# CFDIST_RAY_OPTIONS=...  further options of `ray start`, such as --resources={"NPU":2}
#SBATCH --job-name=cfdist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --output=cfdist-%j.out
set -euo pipefail

checkout=${CFDIST_CHECKOUT:-$SLURM_SUBMIT_DIR}
python=${CFDIST_PYTHON:-$checkout/.venv/bin/python}
ray=$(dirname "$python")/ray
nodes=$SLURM_JOB_NUM_NODES
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}

# Only who knows this job's token reaches its cluster. srun hands the environment on, after `sbatch --export=NONE` too,
# and lets each step have all cores of its host, also where tasks are bound.
export SLURM_EXPORT_ENV=ALL SLURM_CPU_BIND=none
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS
# Ray's own limits for a start, seconds each, are too short on a busy host.
export RAY_raylet_start_wait_time_s=120 RAY_gcs_server_port_wait_time_s=120
export RAY_agent_register_timeout_ms=120000 RAY_worker_register_timeout_seconds=120

on_head=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head")
options=(--block --min-worker-port=0 --max-worker-port=0)
# Hosts may have different numbers of CPUs: each step finds that of its own.
# shellcheck disable=SC2016
start=(bash -c 'exec "$0" start --num-cpus="${SLURM_CPUS_ON_NODE:-1}" "$@"' "$ray")
read -r -a further <<<"${CFDIST_RAY_OPTIONS:-}"
options+=("${further[@]}")

# This host is the first of the allocation, and Ray knows by which address the others reach it.
ip=$("$python" -c 'import ray; print(ray.util.get_node_ip_address())')
address=$ip:$((20000 + SLURM_JOB_ID % 10000))
folder=${CFDIST_RAY_FOLDER:-/tmp/ray_$SLURM_JOB_ID}

# At the end the hosts' processes go, and Ray's files; after a failure its logs stay.
finish() {
  local code=$?
  # shellcheck disable=SC2046  # a word for each process
  kill $(jobs -p) 2>/dev/null || true
  wait
  [ "$code" != 0 ] || srun --overlap --nodes="$nodes" --ntasks="$nodes" rm -rf "$folder"
}
trap finish EXIT

"${on_head[@]}" "${start[@]}" --head --node-ip-address="$ip" --port="${address##*:}" \
  --temp-dir="$folder" --include-dashboard=false "${options[@]}" >&2 &
if [ "$nodes" -gt 1 ]; then
  srun --overlap --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) \
    --exclude="$head" "${start[@]}" --address="$address" "${options[@]}" >&2 &
fi

# Wait until every host has joined, two minutes at most.
"$python" - "$address" "$nodes" <<'PYTHON'
import socket, sys, time

address, nodes = sys.argv[1], int(sys.argv[2])
host, port = address.rsplit(":", 1)
end, joined = time.monotonic() + 120, 0
while joined < nodes and time.monotonic() < end:
    time.sleep(0.5)
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        continue
    from ray._raylet import GcsClient

    joined = len(GcsClient(address=address).get_all_node_info(timeout=10))
if joined < nodes:
    sys.exit(f"slurm.sh: {joined} of {nodes} hosts have joined the Ray cluster at {address}")
PYTHON

# A step of its own, so that scancel and the time limit end it as a signal would.
"${on_head[@]}" "$python" "$checkout/main.py" cluster.address="$address" "$@"
