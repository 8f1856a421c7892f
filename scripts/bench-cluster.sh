#!/usr/bin/env bash
# The goals of a cluster of three nodes on one machine, one section each:
#
#   standard   the four standard runs: wrk2 at a steady rate, PUT and GET, ack/from 1/1 and 2/3,
#              each followed by the same wrk2 arguments against nginx that answers a constant
#   closed     closed loop: requests/s, CPU of the whole cluster a request, and its ratio of PUT 2/3
#              to PUT 1/1
#   pause      a steady load with 2/3 while another node is stopped (SIGSTOP) in the middle of the
#              recorded time
#   kill       the same, while another node is killed (SIGKILL)
#   return     a node that missed many keys comes back under a steady load: how long until it has
#              them
#   profile    the share of CPU that goes into what the nodes say to each other, in the closed loop
#              and at the steady rate
#   etcd       only if it is named: closed loop beside three nodes of etcd, through its JSON gateway
#
# The cluster is `koltso local --nodes 3 --threads 1`. All requests go to its first node, and the
# third is the one that is disturbed. Servers and load tool share all processors that this process
# may use, unpinned, unless options say otherwise. Every wait has a limit. This ends only processes
# that it started (the nodes are children of one of them).
set -u -o pipefail

SCRIPTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
KOLTSO=$SCRIPTS/../target/release/koltso
SERVER_CORE=$(awk '/^Cpus_allowed_list:/ { print $2 }' /proc/self/status)
LOAD_CORE=$SERVER_CORE
STYLE=plain FOLDER=${TMPDIR:-/tmp} SYNC=1s VALUE_SIZE=128 KEYS=100000
ROUNDS=3 SECONDS_EACH=5
STANDARD_SECONDS=60 STANDARD_ROUNDS=1 RATE=10000
DISTURBED_SECONDS=20 RETURN_SECONDS=30 DISTURBED_RATE=2000 DISTURBED_ROUNDS=1 DISTURBED_CONNECTIONS=16 MISSED=100000
CALIBRATION=10.4 # seconds from wrk2's start to its first recorded latency
SECTIONS=()

# shellcheck source-path=SCRIPTDIR source=bench-lib.sh
source "$SCRIPTS/bench-lib.sh"
# shellcheck source-path=SCRIPTDIR source=cluster-lib.sh
source "$SCRIPTS/cluster-lib.sh"

usage() {
  cat <<USAGE
usage: scripts/bench-cluster.sh [options] [standard] [closed] [pause] [kill] [return] [profile] [etcd]
                                 (all sections but etcd unless named)
  --koltso PATH          the binary (target/release/koltso of this repository)
  --rounds N             rounds of closed, profile and etcd (3)
  --seconds N            seconds a measurement in them (5)
  --standard-seconds N   seconds a standard run, at least 14: wrk2 records nothing in its first 10 (60)
  --standard-rounds N    rounds of standard (1)
  --rate N               requests/s of the standard runs and of the second profile (10000)
  --disturbed-seconds N  seconds a run of pause and kill, at least 14 (20)
  --disturbed-rounds N   rounds of pause, kill and return (1)
  --disturbed-rate N     requests/s in them (2000)
  --return-seconds N     seconds the steady load of return lasts, at least 14 (30)
  --missed N             keys that the node of return misses (100000)
  --keys N               key space of all others (100000)
  --connections N        connections of standard, closed, profile and etcd (64)
  --value-size N         bytes a value (128)
  --sync MODE            Koltso's --sync (1s)
  --server-core LIST, --load-core LIST   processors of the servers and of the load tool (all, for both)
  --folder PATH          where the data go, on a real disk ($FOLDER)
  --markdown             tables in markdown
USAGE
}

while (($#)); do
  case $1 in
    --markdown) STYLE=markdown ;;
    --help | -h) usage && exit 0 ;;
    standard | closed | pause | kill | return | profile | etcd) SECTIONS+=("$1") ;;
    --koltso | --folder | --sync | --server-core | --load-core | --rounds | --seconds | --standard-seconds | --standard-rounds | --rate | \
      --disturbed-seconds | --disturbed-rounds | --disturbed-rate | --return-seconds | --missed | --keys | --connections | --value-size)
      (($# > 1)) || fail "$1 needs a value."
      case $1 in
        --koltso) KOLTSO=$2 ;;
        --folder) FOLDER=$2 ;;
        --sync) SYNC=$2 ;;
        --server-core) SERVER_CORE=$2 ;;
        --load-core) LOAD_CORE=$2 ;;
        *)
          [[ $2 =~ ^[0-9]{1,8}$ ]] || fail "$1 needs a number, not '$2'."
          case $1 in
            --rounds) ROUNDS=$2 ;;
            --seconds) SECONDS_EACH=$2 ;;
            --standard-seconds) STANDARD_SECONDS=$2 ;;
            --standard-rounds) STANDARD_ROUNDS=$2 ;;
            --rate) RATE=$2 ;;
            --disturbed-seconds) DISTURBED_SECONDS=$2 ;;
            --disturbed-rounds) DISTURBED_ROUNDS=$2 ;;
            --disturbed-rate) DISTURBED_RATE=$2 ;;
            --return-seconds) RETURN_SECONDS=$2 ;;
            --missed) MISSED=$2 ;;
            --keys) KEYS=$2 ;;
            --connections) CONNECTIONS=$2 ;;
            --value-size) VALUE_SIZE=$2 ;;
          esac
          ;;
      esac
      shift
      ;;
    *) usage >&2 && fail "Unknown option or section $1." ;;
  esac
  shift
done
((ROUNDS >= 1 && SECONDS_EACH >= 1 && STANDARD_ROUNDS >= 1 && DISTURBED_ROUNDS >= 1 && RATE >= 1 && DISTURBED_RATE >= 1)) ||
  fail "--rounds, --seconds and rates must be at least 1."
((MISSED >= 1 && KEYS >= 10 && VALUE_SIZE >= 8 && CONNECTIONS >= 4)) || fail "--missed, --keys, --value-size or --connections is too small."
((STANDARD_SECONDS >= 14)) || fail "--standard-seconds must be at least 14: wrk2 records nothing in its first 10."
((DISTURBED_SECONDS >= 14 && RETURN_SECONDS >= 14)) ||
  fail "--disturbed-seconds and --return-seconds must be at least 14: wrk2 records nothing in its first 10."
((${#SECTIONS[@]})) || SECTIONS=(standard closed pause kill return profile)

TOOLS=(python3=python3 curl=curl jq=jq taskset=util-linux timeout=coreutils)
case " ${SECTIONS[*]} " in *' standard '* | *' pause '* | *' kill '* | *' return '* | *' profile '*) TOOLS+=(wrk2=wrk2) ;; esac
case " ${SECTIONS[*]} " in *' closed '* | *' profile '* | *' etcd '*) TOOLS+=(wrk=wrk) ;; esac
[[ " ${SECTIONS[*]} " != *' standard '* ]] || TOOLS+=(nginx=nginx-light)
[[ " ${SECTIONS[*]} " != *' profile '* ]] || TOOLS+=(ss=iproute2)
[[ " ${SECTIONS[*]} " != *' etcd '* ]] || TOOLS+=(etcd=etcd-server)
need_tools "${TOOLS[@]}"
need_koltso
bench_begin "$FOLDER"
trap cluster_bench_end EXIT

VICTIM=2 # which of the nodes is disturbed
# These are cut as in /proc/PID/task/TID/stat; a test in src/admin/classes.rs compares them with the
# program.
PROFILER_THREADS='\(koltso-(capture|profiler)\)'

later() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a + b }'; }

# Starts a node again with the flags that it had, which are in $WORK/cmdline. Sets READY_US, the
# moment of its ready line.
remember_node() { # remember_node INDEX
  cp "/proc/${NODES[$1]}/cmdline" "$WORK/cmdline"
}

restart_node() { # restart_node INDEX
  local command log=$WORK/restarted.log
  mapfile -d '' -t command <"$WORK/cmdline"
  start_pinned "$log" "${command[@]}"
  NODES[$1]=$PID
  MEASURED+=("$PID")
  wait_for_text "$log" 'ready http://' 60 "$PID" 'The node that was stopped'
  READY_US=$(now_us)
}

# Sends SIGTERM or SIGKILL to a node, keeps its CPU for read_cpu, and waits until it has gone
# (`koltso local` reaps it).
end_node() { # end_node INDEX SIGNAL
  local pid=${NODES[$1]} waited=0
  cp "/proc/$pid/stat" "$WORK/stat.$pid"
  if [[ " ${STARTED[*]} " == *" $pid "* ]]; then
    stop_server "$pid" "$2" 15 2>/dev/null # bash would say that it was killed
    return
  fi
  kill -s "$2" "$pid"
  while alive "$pid" && ((waited++ < 1500)); do pause 0.01; done
}

# ---- standard

section_standard() {
  local round method case ack of cluster_port nodes
  local -a arguments
  : >"$WORK/runs"
  WRK_THREADS=4
  for ((round = 1; round <= STANDARD_ROUNDS; round++)); do
    start_cluster
    cluster_port=$PORT nodes=("${NODES[@]}")
    for case in 'put 1 1' 'put 2 3' 'get 1 1' 'get 2 3'; do
      read -r method ack of <<<"$case"
      PORT=$cluster_port MEASURED=("${nodes[@]}")
      [[ $case != 'get 1 1' ]] || fill
      arguments=("$method" "$STANDARD_SECONDS" "$RATE" --keys "$KEYS" --size "$VALUE_SIZE" --ack "$ack" --from "$of")
      run_wrk2 "${arguments[@]}"
      standard_row "${method^^} $ack/$of" Koltso
      MEASURED=()
      start_nginx "$VALUE_SIZE"
      run_wrk2 "${arguments[@]}"
      standard_row "${method^^} $ack/$of" nginx
      stop_server "$MASTER" TERM 5
    done
    PORT=$cluster_port
    stop_cluster
  done
  WRK_THREADS=1
  over_rounds mmmmxsxx <"$WORK/runs" >"$WORK/medians"
  {
    printf 'run, server\tserved/s\tp50, ms\tp99, ms\tp99.9, ms\tmax, ms\tnot 2xx\tothers\tstolen\n'
    awk -F '\t' -v OFS='\t' '{ $2 = sprintf("%.0f", $2); for (i = 3; i <= 6; i++) $i = sprintf("%.2f", $i); $8 = $8 " %"; $9 = $9 " %"; print }' "$WORK/medians"
  } >"$WORK/table"
  report "Standard runs: wrk2 -t4 -c$CONNECTIONS -R$RATE -d${STANDARD_SECONDS}s -L, values of $VALUE_SIZE bytes, medians of $STANDARD_ROUNDS rounds (max: the longest)"
  {
    printf 'run\tp50 - nginx p50, ms\twanted\treached\tp99 to nginx p99\twanted\treached\n'
    awk -F '\t' -v OFS='\t' '
      { split($1, name, ", "); p50[name[1], name[2]] = $3; p99[name[1], name[2]] = $4
        if (name[2] == "Koltso") order[++runs] = name[1] }
      END {
        for (i = 1; i <= runs; i++) {
          run = order[i]; more = p50[run, "Koltso"] - p50[run, "nginx"]; base = p99[run, "nginx"]
          print run, sprintf("%.2f", more), "<= 0.50", (more <= 0.5 ? "yes" : "no"), \
            sprintf("%.2f", base > 0 ? p99[run, "Koltso"] / base : 0), "<= 2.00", (p99[run, "Koltso"] <= 2 * base ? "yes" : "no")
        }
      }' "$WORK/medians"
  } >"$WORK/table"
  report 'Standard runs beside nginx'
}

standard_row() { # standard_row RUN SERVER
  printf '%s, %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$(each_second)" "$P50" "$P99" "$P999" "$MAX" "$NOT_2XX" "$OTHERS" "$STOLEN" >>"$WORK/runs"
  progress "standard, $1, $2: p50 $P50, p99 $P99, p99.9 $P999, max $MAX ms, $NOT_2XX not 2xx"
}

# ---- closed

CLOSED_CASES=('put 2 3' 'get 2 3' 'put 1 1' 'get 1 1')

section_closed() {
  local round case method ack of order=("${CLOSED_CASES[@]}")
  : >"$WORK/runs"
  for ((round = 1; round <= ROUNDS; round++)); do
    start_cluster
    fill
    for case in "${order[@]}"; do
      read -r method ack of <<<"$case"
      run_wrk "$method" "$SECONDS_EACH" --keys "$KEYS" --size "$VALUE_SIZE" --ack "$ack" --from "$of"
      closed_row "${method^^} $ack/$of"
      pause 1
    done
    stop_cluster
    order=("${order[@]:1}" "${order[0]}") # so that drift hits all of them
  done
  over_rounds mmmmms <"$WORK/runs" >"$WORK/medians"
  {
    printf 'what\trequests/s\tuser us\tsystem us\tboth\tcluster busy\tload busy\tnot 2xx\n'
    awk -F '\t' -v OFS='\t' '{ print $1, sprintf("%.0f", $2), sprintf("%.2f", $3), sprintf("%.2f", $4), sprintf("%.2f", $3 + $4), \
      sprintf("%.0f %%", $5), sprintf("%.0f %%", $6), $7 }' "$WORK/medians" | sort
  } >"$WORK/table"
  report "Closed loop: wrk -t1 -c$CONNECTIONS, values of $VALUE_SIZE bytes, medians of $ROUNDS rounds of $SECONDS_EACH s; CPU a request, of all three nodes; busy: per cent of one core"
  {
    printf 'goal\twanted\tmeasured\treached\n'
    awk -F '\t' -v OFS='\t' '
      { rate[$1] = $2; cpu[$1] = $3 + $4 }
      function yes(is) { return is ? "yes" : "no" }
      END {
        print "PUT 2/3, requests/s", ">= 20000", sprintf("%.0f", rate["PUT 2/3"]), yes(rate["PUT 2/3"] >= 20000)
        print "GET 2/3, requests/s", ">= 30000", sprintf("%.0f", rate["GET 2/3"]), yes(rate["GET 2/3"] >= 30000)
        ratio = cpu["PUT 1/1"] > 0 ? cpu["PUT 2/3"] / cpu["PUT 1/1"] : 0
        print "CPU of PUT 2/3 to PUT 1/1", "<= 2.00", sprintf("%.2f", ratio), yes(ratio > 0 && ratio <= 2)
      }' "$WORK/medians"
  } >"$WORK/table"
  report 'Closed loop, goals'
}

closed_row() { # closed_row WHAT
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$(each_second)" "$USER_US" "$SYS_US" "$SERVER_BUSY" "$LOAD_BUSY" "$NOT_2XX" >>"$WORK/runs"
  progress "closed loop, $1: $(each_second)/s, $USER_US + $SYS_US us of CPU a request, $NOT_2XX not 2xx"
}

# ---- pause and kill

section_pause() { disturb pause STOP; }
section_kill() { disturb kill KILL; }

# Runs wrk2 against the first node; in the middle of the recorded time the third node is stopped or
# killed, and stays so.
disturb() { # disturb NAME SIGNAL
  local round method middle connections=$CONNECTIONS
  middle=$(awk -v s="$DISTURBED_SECONDS" -v c="$CALIBRATION" 'BEGIN { printf "%.2f", c + (s - c) / 2 }')
  CONNECTIONS=$DISTURBED_CONNECTIONS
  : >"$WORK/runs"
  for ((round = 1; round <= DISTURBED_ROUNDS; round++)); do
    start_cluster
    fill
    for method in put get; do
      wrk2_begin "$method" "$DISTURBED_SECONDS" "$DISTURBED_RATE" --keys "$KEYS" --size "$VALUE_SIZE" --ack 2 --from 3
      pause "$middle"
      remember_node "$VICTIM"
      if [[ $2 == STOP ]]; then kill -s STOP "${NODES[$VICTIM]}"; else end_node "$VICTIM" "$2"; fi
      wrk2_end
      disturbed_row "$1, ${method^^} 2/3"
      if [[ $2 == STOP ]]; then kill -s CONT "${NODES[$VICTIM]}"; else restart_node "$VICTIM"; fi
      await_calm 60 0 "$VICTIM" || exit 1
      progress "$1: whole again after $CALM_SECONDS s"
      MEASURED=("${NODES[@]}")
    done
    stop_cluster
  done
  CONNECTIONS=$connections
  disturbed_table
  report "$1: wrk2 -t1 -c$DISTURBED_CONNECTIONS -R$DISTURBED_RATE -d${DISTURBED_SECONDS}s -L at one node, SIG$2 to another ${middle} s into it (recorded from $CALIBRATION s); medians of $DISTURBED_ROUNDS rounds, max and errors of all"
}

disturbed_row() { # disturbed_row WHAT
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$(each_second)" "$P50" "$P99" "$P999" "$MAX" "$NOT_2XX" "$OTHERS" "$STOLEN" >>"$WORK/runs"
  progress "$1: p50 $P50, p99 $P99, p99.9 $P999, max $MAX ms, $NOT_2XX errors"
}

disturbed_table() {
  {
    printf 'run\tserved/s\tp50, ms\tp99, ms\twanted\tp99.9, ms\twanted\tmax, ms\twanted\terrors\twanted\treached\tothers\tstolen\n'
    over_rounds mmmmxsxx <"$WORK/runs" | awk -F '\t' -v OFS='\t' -v rate="$DISTURBED_RATE" '{
      missed = ""
      if ($4 > 20) missed = missed ", p99"
      if ($5 > 100) missed = missed ", p99.9"
      if ($6 > 500) missed = missed ", max"
      if ($7 > 0) missed = missed ", errors"
      if ($2 < 0.97 * rate) missed = missed ", served" # what was never answered is in no percentile
      print $1, sprintf("%.0f", $2), sprintf("%.2f", $3), sprintf("%.2f", $4), "<= 20", sprintf("%.2f", $5), "<= 100", \
        sprintf("%.2f", $6), "<= 500", $7, "0", (missed == "" ? "yes" : "no: " substr(missed, 3)), $8 " %", $9 " %" }'
  } >"$WORK/table"
}

# ---- return

# The steady load has keys of its own (20 bytes; 10 000 of them, one pass of wrk2's pool), so that
# the number of records is known and constant when the node starts again: the keys that it missed,
# and those.
section_return() {
  local round connections=$CONNECTIONS steady=10000 pending expected began ended lasted hidden
  CONNECTIONS=$DISTURBED_CONNECTIONS
  : >"$WORK/runs"
  expected=$((MISSED + steady))
  for ((round = 1; round <= DISTURBED_ROUNDS; round++)); do
    start_cluster
    remember_node "$VICTIM"
    end_node "$VICTIM" TERM
    load_keys "$PORT" "$MISSED" --value-size "$VALUE_SIZE" --ack 2 --from 3
    progress "return: $(<"$WORK/load.log")"
    began=$(now_us)
    wrk2_begin put "$RETURN_SECONDS" "$DISTURBED_RATE" --keys "$steady" --key-size 20 --size "$VALUE_SIZE" --ack 2 --from 3
    pause "$(later "$CALIBRATION" 1.2)" # under load, formatting the requests takes longer
    pending=$(curl -s -m 5 "http://127.0.0.1:$PORT/status" | jq '[.cluster.peers[].hints_pending] | add')
    restart_node "$VICTIM"
    await_calm 60 "$READY_US" "$VICTIM" || progress 'return: given up; the table has the time until then.'
    ended=$(now_us)
    wrk2_end
    lasted=$(awk -v a="$began" -v b="$ended" 'BEGIN { printf "%.1f", (b - a) / 1e6 }')
    hidden=$(verdict "$lasted > $RETURN_SECONDS")
    [[ $hidden == no ]] || progress "return: the node was whole only after the steady load had ended, so its latencies are not of the whole return."
    printf 'return\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$CALM_SECONDS" "$CALM_RECORDS" "$pending" "$(each_second)" "$P50" "$P99" "$P999" "$MAX" "$NOT_2XX" "$OTHERS" "$STOLEN" >>"$WORK/runs"
    progress "return: $CALM_RECORDS records $CALM_SECONDS s after its ready line; $pending hints were pending"
    stop_cluster
  done
  CONNECTIONS=$connections
  {
    printf 'what\twhole after, s\twanted\treached\trecords (of %d)\thints pending at its start\tserved/s\tp50, ms\tp99, ms\twanted\treached\tp99.9, ms\tmax, ms\terrors\tothers\tstolen\n' "$expected"
    over_rounds mtmmmmmxsxx <"$WORK/runs" | awk -F '\t' -v OFS='\t' -v expected="$expected" '{
      print $1, sprintf("%.2f", $2), "<= 10", ($2 <= 10 && $3 == expected ? "yes" : "no"), $3, $4, sprintf("%.0f", $5), \
        sprintf("%.2f", $6), sprintf("%.2f", $7), "<= 20", ($7 <= 20 ? "yes" : "no"), sprintf("%.2f", $8), sprintf("%.2f", $9), $10, $11 " %", $12 " %" }'
  } >"$WORK/table"
  report "return: a node that missed $MISSED keys starts under wrk2 -t1 -c$DISTURBED_CONNECTIONS -R$DISTURBED_RATE -d${RETURN_SECONDS}s PUT 2/3 at another; medians of $DISTURBED_ROUNDS rounds. Latencies are of all that wrk2 recorded, from about 1 s before the start to the run's end"
}

# ---- profile
#
# How the CPU of the cluster is divided, for a PUT 2/3 whose requests all go to the first node.
# Samples are the nodes' own captures (`koltso profile --hz 499`), taken at all three at the same
# time, without what the captures themselves cost. src/admin/classes.rs has the names, and
# scripts/division.py divides the classes that HTTP and exchange share:
#
# 1. Threads that seal, sync, compact and provision segments are storage.
# 2. Otherwise the innermost user function of the stack that has one of these names decides, for
#    user samples and for the kernel samples below it (mostly page faults) alike.
#    koltso_net::replica (links, frames, replica server), koltso::member (which submits to links,
#    flushes them and serves peers), koltso::replica::clock and koltso_hints are exchange. The rest
#    of koltso_net, koltso::front, koltso::node::dispatch, koltso::counters, and
#    koltso::admin::status and metrics are HTTP. koltso_storage and the rest of koltso::replica are
#    storage. koltso_cluster is coordinator logic. Inlined code counts as the function into which it
#    was inlined.
# 3. Samples of core threads without such a function are the ring, its system calls and the event
#    loop, which HTTP and exchange share. Sends through the ring are HTTP's: links and the replica
#    server send by sendto(2) and sendmsg(2), which the stacks show. Receives are divided by the
#    data segments that the node's sockets took in meanwhile (`ss -i`, before and after), all else
#    by the ring's operations: segments in and out of HTTP, and in of the exchange. A send includes
#    the peer's receive processing, since loopback does that in the sender's context. Nodes without
#    HTTP connections have no HTTP segments: all of it is exchange there.
# 4. All other threads are "other".
#
# So the event loop's own work counts, too: none of it is "other". Two more estimates are printed
# beside it:
#
# - at most: the same, but with all shared work that is neither send nor receive (turns of the event
#   loop, the ring's bookkeeping, going to sleep) given to exchange, on the asked node, too.
# - by CPU: (CPU of the asked node - CPU of a node that is alone, for its own PUTs + CPU of the
#   other two without their storage) to CPU of all, a request, from /proc/PID/stat, measured in the
#   same session. This is an upper bound for comparison: it counts as exchange also the
#   coordinator's logic, and the additional cost of HTTP if three nodes share the processors (an
#   answer that leaves alone wakes its client alone; a node by itself answers many in one turn, from
#   warm caches).
section_profile() {
  local round load
  : >"$WORK/runs"
  for load in closed steady; do
    for ((round = 1; round <= ROUNDS; round++)); do
      profile_round "$load"
    done
  done
  {
    printf 'load\texchange\twanted\treached\tat most\tby CPU\tkernel/network\tof it HTTP\tof it exchange\tasked node, us a PUT\tthe others\tnode alone\tsamples\n'
    over_rounds mmmmmmmmms <"$WORK/runs" | awk -F '\t' -v OFS='\t' '{
      for (i = 2; i <= 10; i++) $i = sprintf(i <= 7 ? "%.1f %%" : "%.2f", $i)
      print $1, $2, "<= 35 %", ($2 + 0 <= 35 ? "yes" : "no"), $3, $4, $5, $6, $7, $8, $9, $10, $11 }'
  } >"$WORK/table"
  report "profile: share of CPU of the cluster that exchange between the nodes takes in PUT 2/3, medians of $ROUNDS rounds of $SECONDS_EACH s; the rule is in scripts/bench-cluster.sh. By $ENGINE"
}

profile_load() { # profile_load begin|end closed|steady [ARGUMENT...]: that load, with two seconds before and after
  local half=$1 load=$2
  shift 2
  [[ $half == begin ]] || set --
  case $half-$load in
    begin-closed) wrk_begin put $((SECONDS_EACH + 4)) --keys "$KEYS" --size "$VALUE_SIZE" "$@" ;;
    begin-steady) wrk2_begin put $((SECONDS_EACH + 4)) "$RATE" --keys "$KEYS" --size "$VALUE_SIZE" "$@" ;;
    end-closed) wrk_end ;;
    end-steady) wrk2_end ;;
  esac
}

node_ticks() { # node_ticks PID...: of their threads, without those that are there for captures only
  local pid task stat fields sum=0
  for pid in "$@"; do
    for task in "/proc/$pid/task"/*/stat; do
      { stat=$(<"$task"); } 2>/dev/null || continue # it has ended meanwhile
      [[ ! $stat =~ $PROFILER_THREADS ]] || continue
      read -r -a fields <<<"${stat##*) }"
      sum=$((sum + fields[11] + fields[12]))
    done
  done
  printf '%s' "$sum"
}

sockets() { ss -tinpOH; }

profile_round() { # profile_round closed|steady
  local load=$1 asked others alone nodes ports i name value table=$WORK/classes name_of captures=() recorders=()
  declare -A value_of
  start_cluster
  fill
  nodes=$(IFS=, && echo "${NODES[*]}") ports=$(IFS=, && echo "${NODE_PORTS[*]}")
  asked=$(node_ticks "${NODES[0]}") others=$(node_ticks "${NODES[@]:1}")
  profile_load begin "$load" --ack 2 --from 3
  pause 2
  sockets >"$WORK/ss.before"
  for i in 0 1 2; do
    captures+=("$WORK/cpu-$i.json")
    timeout $((SECONDS_EACH + 90)) "$KOLTSO" profile "http://127.0.0.1:${NODE_PORTS[i]}" --seconds "$SECONDS_EACH" --hz 499 \
      --out "$WORK/cpu-$i.pb.gz" 2>"$WORK/cpu-$i.said" &
    recorders+=($!)
    STARTED+=($!)
  done
  pause "$SECONDS_EACH"
  sockets >"$WORK/ss.after"
  profile_load end "$load"
  ((NOT_2XX == 0)) || progress "profile, $load: $NOT_2XX answers were not 2xx."
  asked=$(ticks_us $(($(node_ticks "${NODES[0]}") - asked)))
  others=$(ticks_us $(($(node_ticks "${NODES[@]:1}") - others)))
  for i in 0 1 2; do
    wait "${recorders[i]}" || fail_capture "$WORK/cpu-$i.said"
    forget "${recorders[i]}"
  done
  stop_cluster
  for i in 0 1 2; do
    "$KOLTSO" profile "$WORK/cpu-$i.pb.gz" --classes --json >"${captures[i]}" 2>"$WORK/cpu-$i.said" || fail_capture "$WORK/cpu-$i.said"
  done
  ENGINE=$(jq -r '.engine | split(";")[0]' "${captures[0]}")
  timeout 120 python3 "$SCRIPTS/division.py" --nodes "$nodes" --ports "$ports" --before "$WORK/ss.before" --after "$WORK/ss.after" \
    "${captures[@]}" >"$WORK/divided" || {
    printf 'The samples could not be divided.\n' >&2
    exit 1
  }
  grep $'\t' "$WORK/divided" >"$table"
  while read -r name value; do value_of[$name]=$value; done < <(grep -v $'\t' "$WORK/divided")

  start_koltso "$WORK/data" --sync "$SYNC" --no-pin
  load_keys "$PORT" "$KEYS" --value-size "$VALUE_SIZE"
  pause 1
  profile_load begin "$load"
  profile_load end "$load"
  alone=$(later "$USER_US" "$SYS_US")
  stop_server "$PID" TERM 15
  rm -rf -- "$WORK/data"

  name_of="$load loop"
  [[ $load == closed ]] || name_of="$RATE/s"
  mv "$table" "$WORK/table"
  report "profile, PUT 2/3, $name_of, round $round: per cent of all CPU of the cluster (${value_of[samples]} samples)"
  read -r -a value <<<"${value_of[segments]}"
  printf '\nData segments of the asked node: out %d HTTP and %d exchange, in %d HTTP and %d exchange.\n' "${value[@]}"
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "PUT 2/3, $name_of" "${value_of[exchange]}" "${value_of[exchange_at_most]}" \
    "$(awk -v a="$asked" -v o="$others" -v s="$alone" -v part="${value_of[replica_storage]}" \
      'BEGIN { printf "%.1f", (a + o) ? 100 * (a - s + o * (1 - part)) / (a + o) : 0 }')" \
    "${value_of[kernel]}" "${value_of[kernel_http]}" "${value_of[kernel_exchange]}" "$asked" "$others" "$alone" "${value_of[samples]}" >>"$WORK/runs"
  progress "profile, $name_of: exchange ${value_of[exchange]} %"
}

fail_capture() { # fail_capture FILE
  printf 'A capture failed: %s\n' "$(tail -n 1 "$1")" >&2
  exit 1
}

ticks_us() { # ticks_us TICKS: microseconds a request
  awk -v t="$1" -v hz="$CLOCK_TICKS" -v n="$REQUESTS" 'BEGIN { printf "%.3f", t / hz / (n ? n : 1) * 1e6 }'
}

# ---- etcd

# Starts three nodes of etcd with its default settings, on a fresh folder. Sets NODES, MEASURED, and
# PORT, the leader's.
start_etcd() {
  local first number cluster='' port status member leader waited folder=$WORK/etcd
  mkdir -p "$folder"
  first=$(free_port 6)
  [[ -n $first ]] || fail "There are no six free ports in a row."
  for number in 0 1 2; do cluster+=",node-$number=http://127.0.0.1:$((first + 3 + number))"; done
  NODES=() NODE_PORTS=() PORT=''
  for number in 0 1 2; do
    port=$((first + number))
    start_pinned "$folder/log-$number" etcd --name "node-$number" --data-dir "$folder/data-$number" \
      --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" \
      --listen-peer-urls "http://127.0.0.1:$((port + 3))" --initial-advertise-peer-urls "http://127.0.0.1:$((port + 3))" \
      --initial-cluster "${cluster#,}"
    NODES+=("$PID") NODE_PORTS+=("$port")
  done
  MEASURED=("${NODES[@]}")
  for ((waited = 0; waited < 100; waited++)); do
    for port in "${NODE_PORTS[@]}"; do
      status=$(curl -s -m 2 "http://127.0.0.1:$port/v3/maintenance/status" -d '{}')
      read -r member leader < <(jq -r '"\(.header.member_id) \(.leader)"' <<<"$status" 2>/dev/null)
      [[ -n ${member:-} && $member != null && $member == "${leader:-}" ]] && PORT=$port && return
    done
    pause 0.2
  done
  printf 'etcd had no leader within 20 s. It said: %s\n' "$(tail -n 2 "$folder/log-0")" >&2
  exit 1
}

stop_etcd() {
  local pid
  for pid in "${NODES[@]}"; do stop_server "$pid" TERM 10; done
  NODES=() NODE_PORTS=() MEASURED=()
  rm -rf -- "$WORK/etcd"
}

section_etcd() {
  local round filling sync mode keys=10000 arguments
  [[ $KEYS -ge $keys ]] || keys=$KEYS
  arguments=(--keys "$keys" --size "$VALUE_SIZE")
  : >"$WORK/runs"
  for ((round = 1; round <= ROUNDS; round++)); do
    start_etcd
    # wrk goes through one shuffle of all keys, so after as many puts as there are keys, each has
    # been put.
    for ((filling = 2, REQUESTS = 0; REQUESTS < keys && filling <= 64; filling *= 2)); do
      run_wrk etcd "$filling" "${arguments[@]}" --reads 0
    done
    ((REQUESTS >= keys && NOT_2XX == 0)) || fail "etcd could not be filled: $REQUESTS answers, $NOT_2XX of them not 2xx."
    run_wrk etcd "$SECONDS_EACH" "${arguments[@]}" --reads 0 && closed_row 'put, etcd'
    run_wrk etcd "$SECONDS_EACH" "${arguments[@]}" --reads 1 && closed_row 'get, linearizable, etcd'
    run_wrk etcd "$SECONDS_EACH" "${arguments[@]}" --reads 1 --serializable && closed_row 'get, serializable, etcd'
    stop_etcd
    for mode in "$SYNC" always; do
      sync=$SYNC
      SYNC=$mode
      start_cluster
      SYNC=$sync
      fill "$keys"
      run_wrk put "$SECONDS_EACH" "${arguments[@]}" --ack 2 --from 3 && closed_row "PUT 2/3, Koltso --sync $mode"
      if [[ $mode != always ]]; then
        run_wrk get "$SECONDS_EACH" "${arguments[@]}" --ack 2 --from 3 && closed_row 'GET 2/3, Koltso'
        run_wrk get "$SECONDS_EACH" "${arguments[@]}" --ack 1 --from 1 && closed_row 'GET 1/1, Koltso'
      fi
      stop_cluster
    done
  done
  {
    printf 'what\trequests/s\tuser us\tsystem us\tservers busy\tload busy\tnot 2xx\n'
    over_rounds mmmmms <"$WORK/runs" | awk -F '\t' -v OFS='\t' '{ print $1, sprintf("%.0f", $2), sprintf("%.2f", $3), sprintf("%.2f", $4), \
      sprintf("%.0f %%", $5), sprintf("%.0f %%", $6), $7 }'
  } >"$WORK/table"
  report "etcd and Koltso, three nodes each: closed loop, wrk -t1 -c$CONNECTIONS, $keys keys of 16 bytes, values of $VALUE_SIZE, medians of $ROUNDS rounds of $SECONDS_EACH s"
  cat <<WHAT

What was asked: of $(etcd --version | head -n 1), default settings, its leader (so nothing is forwarded), by HTTP/1.1 POST of JSON
with base64 to its gateway: /v3/kv/put {key, value}, /v3/kv/range {key} and the same with "serializable": true. The gateway
turns each into a gRPC call inside the process, which its own clients spare; its CPU is in the figures. Of Koltso, the first node.
An etcd put is on the disks of a majority when it answers, as a PUT 2/3 with --sync always is; with --sync $SYNC it is in the
memory of two nodes. A linearizable get asks a majority, as GET 2/3 does (though Koltso's is no consensus: it answers the newest
that two of three replicas have). A serializable get is answered by the node that is asked; GET 1/1 by the one that the key lives
on, which for two thirds of the keys is another one.
WHAT
}

machine_line
printf '%s\n' "$("$KOLTSO" --version 2>/dev/null || echo 'koltso, version unknown')"
for section in "${SECTIONS[@]}"; do
  progress "section $section"
  "section_$section"
done
echo
noise_line || true
