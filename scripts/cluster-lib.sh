# shellcheck shell=bash disable=SC2034,SC2153
# A cluster of three nodes on this machine, for bench-cluster.sh and report.sh.
#
# Owner: the script that sources this file after bench-lib.sh. It sets what bench-lib.sh wants, and
# SYNC, KEYS and VALUE_SIZE; after bench_begin it sets `trap cluster_bench_end EXIT`. Bounds: 70 s
# for the start, 30 s until all nodes see each other and miss nothing, 20 s for a drain.

NODES=() NODE_PORTS=() # of the cluster that runs, in the order of the ports
NODE_THREADS=1         # data cores of a node: three of them and the load tool share the processors
CLUSTER_PORT=''        # the first node's port; where it is empty, one that is free

# Ends processes in the reverse order of their start, so that the load is gone before the nodes
# drain. Nodes get as long as they give themselves for that, since they would otherwise go on
# writing into the folder. SIGTERM does not end a process that is stopped.
cluster_bench_end() {
  local pid i started=("${STARTED[@]}")
  for pid in "${NODES[@]}"; do kill -s CONT "$pid" 2>/dev/null; done
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do stop_server "${started[i]}" TERM 20; done
  bench_end
}

# Starts three nodes on a fresh folder. Sets NODES, NODE_PORTS, MEASURED (all of the nodes), LOCAL,
# and PORT, the first node's.
start_cluster() {
  local log=$WORK/cluster.log pid port children
  rm -rf -- "$WORK/data"
  PORT=${CLUSTER_PORT:-$(free_port 3)}
  [[ -n $PORT ]] || fail "There are no three free ports in a row."
  start_pinned "$log" "$KOLTSO" local --nodes 3 --threads "$NODE_THREADS" --port "$PORT" --data "$WORK/data" --sync "$SYNC"
  LOCAL=$PID
  wait_for_text "$log" 'cluster ready http://' 70 "$LOCAL" 'The cluster'
  NODES=() NODE_PORTS=()
  read -r -a children <<<"$(cat "/proc/$LOCAL/task/"*/children)"
  for port in "$PORT" $((PORT + 1)) $((PORT + 2)); do
    for pid in "${children[@]}"; do
      [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == *"--listen=127.0.0.1:$port "* ]] && NODES+=("$pid") NODE_PORTS+=("$port")
    done
  done
  ((${#NODES[@]} == 3)) || {
    printf 'The processes of the cluster were not found among the children of %s.\n' "$LOCAL" >&2
    exit 1
  }
  MEASURED=("${NODES[@]}")
  await_calm 30 || exit 1
}

stop_cluster() {
  local pid
  for pid in "${NODES[@]}"; do
    kill -s CONT "$pid" 2>/dev/null
    [[ " ${STARTED[*]} " != *" $pid "* ]] || stop_server "$pid" TERM 15 # one that was started again
  done
  stop_server "$LOCAL" TERM 20
  NODES=() NODE_PORTS=() MEASURED=()
  rm -rf -- "$WORK/data"
}

# Waits until all nodes say that all their peers are up and miss nothing, and node INDEX has as many
# records as the node that has most. Sets CALM_SECONDS, counted from the moment SINCE_US (0: from
# now), and CALM_RECORDS, those of node INDEX. If that takes longer than LIMIT_SECONDS, it says what
# was missing and returns 1.
await_calm() { # await_calm LIMIT_SECONDS [SINCE_US INDEX]
  local is_calm
  read -r CALM_SECONDS CALM_RECORDS is_calm < <(ask_calm "$1" "${2:-0}" "${3:--1}" "${NODE_PORTS[@]}")
  [[ ${is_calm:-} == calm ]]
}

ask_calm() {
  python3 - "$@" <<'PYTHON'
import json, sys, time, urllib.request
limit, since, index = float(sys.argv[1]), int(sys.argv[2]) / 1e6, int(sys.argv[3])
ports = sys.argv[4:]
since = since or time.time()
deadline = time.monotonic() + limit

def look():
    """Returns what is missing, or None, and the records of node `index`."""
    records, missing = [], []
    for port in ports:
        try:
            with urllib.request.urlopen("http://127.0.0.1:%s/status" % port, timeout=2) as answer:
                status = json.load(answer)
        except (OSError, ValueError) as error:
            return "node %s does not answer: %s" % (port, error), 0
        if not status.get("storage"):
            return "node %s recovers" % port, 0
        records.append(status["storage"]["records"])
        for peer in status["cluster"]["peers"]:
            if peer["state"] != "up" or peer["hints_pending"] or peer["needs_repair"]:
                missing.append("for node %s, %s is %s, with %s hints pending" % (port, peer["node"], peer["state"], peer["hints_pending"]))
    if index >= 0 and records[index] < max(records):
        missing.append("the nodes have %s records" % ", ".join(map(str, records)))
    return "; ".join(missing), records[index]

while True:
    missing, records = look()
    is_over = time.monotonic() > deadline
    if not missing or is_over:
        print("%.3f %d %s" % (time.time() - since, records, "late" if missing else "calm"))
        if missing:
            sys.stderr.write("The cluster was not whole within %g s: %s.\n" % (limit, missing))
        break
    time.sleep(0.02)
PYTHON
}

fill() { # fill [COUNT]: keys 0 to COUNT - 1, on all replicas
  load_keys "$PORT" "${1:-$KEYS}" --value-size "$VALUE_SIZE" --ack 2 --from 3
  await_calm 30 || exit 1
  pause 1 # sealing and syncing of what was written belongs to no measurement
}
