#!/usr/bin/env bash
# A whole load report in one command: a cluster of three nodes on this machine, the standard runs
# against its first node, and what that node did meanwhile: CPU, allocations, locks, time off the
# CPU.
#
# It leaves a folder for each run, OUT/YYYY-MM-DD-HH-MM-SS_TAG_OP_t4_c64_R10000_d1m/, and
# OUT/README.md about all runs in OUT. OUT/CONCLUSIONS.md is for people: it is created once, empty,
# shown in OUT/README.md, and never written again.
#
# scripts/capture.py captures, `koltso profile --classes` says what the CPU and the rest went into,
# and scripts/report.py writes the texts. If a node cannot give something, the report says so in its
# place, and the rest goes on.
#
# Bounds: every wait has a limit. A folder is put in its place when it is complete, so a run that is
# interrupted leaves nothing. Exit codes: 0 if it was done; 1 for errors while it ran; 2, with one
# sentence and nothing left behind, for errors before that. Tested in tests/report.rs.
set -u -o pipefail

SCRIPTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=${SCRIPTS%/*}
KOLTSO=$REPOSITORY/target/release/koltso
SERVER_CORE=$(awk '/^Cpus_allowed_list:/ { print $2 }' /proc/self/status 2>/dev/null)
LOAD_CORE=$SERVER_CORE
FOLDER=${TMPDIR:-/tmp} OUT=$REPOSITORY/profiles
TOOL=wrk2 DURATION=1m RATE=10000 THREADS=4 SYNC=1s VALUE_SIZE=128 KEYS=100000 TAG=''
RUNS=put,get,put-ack2from3,get-ack2from3

# shellcheck source-path=SCRIPTDIR source=bench-lib.sh
source "$SCRIPTS/bench-lib.sh"
# shellcheck source-path=SCRIPTDIR source=cluster-lib.sh
source "$SCRIPTS/cluster-lib.sh"

usage() {
  cat <<USAGE
usage: scripts/report.sh [options]
  --tool wrk2|koltso   what makes the load: wrk2, or koltso bench ($TOOL)
  --runs LIST          of put, get, put-ackAfromF and get-ackAfromF ($RUNS)
  --duration TIME      of a run, such as 60s or 1m; at least 15s with wrk2, 4s with koltso ($DURATION)
  --rate N, --connections N, --threads N   of the load tool ($RATE, $CONNECTIONS, $THREADS)
  --keys N, --size N   different keys, bytes a value ($KEYS, $VALUE_SIZE)
  --tag TAG            in the folders' names (the commit of this repository, or the version)
  --out DIR            where the folders go (profiles/ of this repository)
  --koltso PATH        the binary (target/release/koltso of this repository)
  --sync MODE          of the nodes ($SYNC)
  --node-threads N     data cores of a node ($NODE_THREADS: three nodes and the load tool share this machine)
  --port N             of the first node; the other two follow (free ones)
  --folder PATH        where the data go meanwhile, on a real disk ($FOLDER)
USAGE
}

while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --tool | --runs | --duration | --rate | --connections | --threads | --keys | --size | --tag | --out | --koltso | --sync | \
      --node-threads | --port | --folder)
      (($# > 1)) || fail "$1 needs a value."
      case $1 in
        --tool) TOOL=$2 ;;
        --runs) RUNS=$2 ;;
        --duration) DURATION=$2 ;;
        --tag) TAG=$2 ;;
        --out) OUT=$2 ;;
        --koltso) KOLTSO=$2 ;;
        --sync) SYNC=$2 ;;
        --folder) FOLDER=$2 ;;
        *)
          [[ $2 =~ ^[1-9][0-9]{0,7}$ ]] || fail "$1 needs a number from 1 on, not '$2'."
          case $1 in
            --rate) RATE=$2 ;;
            --connections) CONNECTIONS=$2 ;;
            --threads) THREADS=$2 ;;
            --keys) KEYS=$2 ;;
            --size) VALUE_SIZE=$2 ;;
            --node-threads) NODE_THREADS=$2 ;;
            --port) CLUSTER_PORT=$2 ;;
          esac
          ;;
      esac
      shift
      ;;
    *) fail "Unknown option $1; scripts/report.sh --help lists them." ;;
  esac
  shift
done

[[ $TOOL == wrk2 || $TOOL == koltso ]] || fail "--tool is wrk2 or koltso, not '$TOOL'."
IFS=, read -r -a RUN_LIST <<<"$RUNS"
((${#RUN_LIST[@]} >= 1 && ${#RUN_LIST[@]} <= 16)) || fail "--runs needs 1 to 16 runs, such as put,get-ack2from3."
for run in "${RUN_LIST[@]}"; do
  # shellcheck disable=SC2015
  [[ $run =~ ^(put|get)(-ack([1-3])from([1-3]))?$ ]] && ((${BASH_REMATCH[3]:-1} <= ${BASH_REMATCH[4]:-1})) ||
    fail "There is no run '$run'; there are put, get, and with replicas put-ackAfromF and get-ackAfromF, A up to F, F up to 3."
done
[[ $DURATION =~ ^([1-9][0-9]{0,4})(s|m)?$ ]] || fail "--duration needs a time such as 60s or 1m, not '$DURATION'."
RUN_SECONDS=${BASH_REMATCH[1]}
[[ ${BASH_REMATCH[2]} != m ]] || RUN_SECONDS=$((RUN_SECONDS * 60))
((RUN_SECONDS <= 3600)) || fail "--duration is 1h at most, not '$DURATION'."
DURATION=${RUN_SECONDS}s
((RUN_SECONDS % 60)) || DURATION=$((RUN_SECONDS / 60))m
[[ $TOOL != wrk2 ]] || ((RUN_SECONDS >= 15)) || fail "--duration must be at least 15s with wrk2, which records nothing in its first 10."
((RUN_SECONDS >= 4)) || fail "--duration must be at least 4s: the captures have to lie inside of it."
((CONNECTIONS >= THREADS)) || fail "--connections $CONNECTIONS is less than --threads $THREADS: each thread needs one."
((VALUE_SIZE >= 8)) || fail "--size must be at least 8: the scripts number the values."
[[ $SYNC =~ ^(os|always|[0-9]+(ms|s|m|h))$ ]] || fail "--sync is os, always or a duration such as 1s, not '$SYNC'."
[[ -z $TAG || $TAG =~ ^[A-Za-z0-9.-]{1,40}$ ]] || fail "--tag has letters, digits, dots and dashes, 40 at most, not '$TAG'."
[[ -z $CLUSTER_PORT ]] || ((CLUSTER_PORT <= 55533)) || fail "--port is 55533 at most: the replica ports are 10000 above."

NEEDED=(awk=mawk python3=python3 ss=iproute2 taskset=util-linux timeout=coreutils)
[[ $TOOL != wrk2 ]] || NEEDED+=(wrk2='wrk2, or say --tool koltso')
need_tools "${NEEDED[@]}"
need_koltso
VERSION=$("$KOLTSO" --version 2>/dev/null) || fail "$KOLTSO does not say its version; build it with 'cargo build --release', or say --koltso PATH."
[[ -n $TAG ]] || TAG=$(git -C "$REPOSITORY" rev-parse --short HEAD 2>/dev/null) || TAG=v${VERSION##* }
# What the nodes' folders may come to: the fill and what each run of PUT adds, with the head of each
# record and three copies, and a few segments of 64 MiB a node.
DATA_MIB=$KEYS
for run in "${RUN_LIST[@]}"; do [[ $run != put* ]] || ((DATA_MIB += RATE * RUN_SECONDS)); done
DATA_MIB=$((DATA_MIB * (VALUE_SIZE + 100) * 3 / 1048576 + 3 * 3 * 64))
python3 "$SCRIPTS/report.py" check --out "$OUT" --folder "$FOLDER" --runs "${#RUN_LIST[@]}" --data-mib "$DATA_MIB" \
  --port "${CLUSTER_PORT:-0}" || exit 2
bench_begin "$FOLDER"
trap report_end EXIT

report_end() {
  [[ -z ${PARTIAL:-} ]] || rm -rf -- "$PARTIAL"
  cluster_bench_end
}

progress() { # one line a step, with the time since the beginning
  printf '[%4d s] %s\n' "$SECONDS" "$*" >&2
}

# When the captures begin and how long they take, so that they are within the time that the load
# tool records: CPU, allocations and locks at once, then off the CPU. That is 20 s from 12 s on and
# 10 s from 35 s on if the run is long enough. Sets CPU_AT, CPU_SECONDS, OFF_AT, OFF_SECONDS.
plan_captures() {
  local lead span
  CPU_AT=12 CPU_SECONDS=20 OFF_AT=35 OFF_SECONDS=10
  ((RUN_SECONDS < 50)) || return 0
  if [[ $TOOL == wrk2 ]]; then lead=11; else lead=$(((RUN_SECONDS + 5) / 6)); fi
  span=$((RUN_SECONDS - lead))
  CPU_AT=$lead CPU_SECONDS=$((span / 2)) OFF_SECONDS=$(((span + 3) / 4))
  OFF_AT=$((RUN_SECONDS - OFF_SECONDS - (span > 3)))
}

# Makes a PNG of an SVG, 1400 pixels wide, with the tools that are installed. 64 colours of a flame
# graph look like all of them, in a third of the bytes.
png() { # png SVG PNG
  local height
  if command -v rsvg-convert >/dev/null; then
    timeout 60 rsvg-convert --width 1400 --format png --output "$2" "$1" 2>/dev/null
  else
    height=$(sed -n 's/.*<svg [^>]*height="\([0-9]*\)".*/\1/p' "$1" | head -n 1)
    timeout 60 chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1.1667 \
      --window-size="1200,${height:-900}" --screenshot="$2" "file://$1" >/dev/null 2>&1
  fi
  ! command -v pngquant >/dev/null || timeout 60 pngquant --force --ext .png 64 -- "$2" 2>/dev/null
  [[ -s $2 ]] || progress "no picture could be made of ${1##*/}"
}

# Waits until the load tool has all its connections: wrk2 formats its requests first, which takes
# seconds on a busy machine.
await_load() {
  local count limit=$(($(now_us) + 30000000))
  while alive "$LOAD_PID" && (($(now_us) < limit)); do
    count=$(ss -tnH state established "( sport = :$PORT )" | wc -l)
    ((count < CONNECTIONS)) || return 0
    pause 0.05
  done
  printf 'The load tool did not connect within 30 s. It said: %s\n' "$(tail -n 3 "$LOAD_LOG")" >&2
  exit 1
}

# Makes one run; its folder is in place when this returns.
run_one() { # run_one RUN
  local run=$1 method=${1%%-*} ack=1 of=1 stage=$WORK/run name svg started_at load status=0 busy
  local -a command counted=()
  [[ $run =~ ack([1-3])from([1-3]) ]] && ack=${BASH_REMATCH[1]} of=${BASH_REMATCH[2]}
  rm -rf -- "$stage" && mkdir "$stage"
  LOAD_LOG=$stage/load.txt
  if [[ $TOOL == wrk2 ]]; then
    command=(wrk2 "-t$THREADS" "-c$CONNECTIONS" "-R$RATE" "-d$DURATION" -L -s "$SCRIPTS/$method.lua" "http://127.0.0.1:$PORT" --
      --keys "$KEYS" --size "$VALUE_SIZE" --ack "$ack" --from "$of")
  else
    command=("$KOLTSO" bench "-t$THREADS" "-c$CONNECTIONS" "-R$RATE" "-d$DURATION" -L "--$method" --keys "$KEYS" --size "$VALUE_SIZE"
      --query "ack=$ack&from=$of" "http://127.0.0.1:$PORT")
    counted=(--json-file "$stage/load.json")
  fi
  await_calm 30 || exit 1
  pause 2 # what belongs to the run before: sealing, syncing
  busy=$(cut -d ' ' -f 1 /proc/loadavg)
  started_at=$(date +%Y-%m-%d-%H-%M-%S)
  progress "$run: load for $DURATION"
  python3 "$SCRIPTS/capture.py" cpu "${NODES[@]}" >"$stage/cpu.before"
  noise_begin
  load=$(children_seconds)
  timeout $((RUN_SECONDS + 90)) taskset -c "$LOAD_CORE" "${command[@]}" "${counted[@]}" >"$LOAD_LOG" 2>&1 &
  LOAD_PID=$!
  STARTED+=("$LOAD_PID")
  await_load
  progress "$run: captures from second $CPU_AT for $CPU_SECONDS s (CPU, allocations, locks) and $OFF_AT for $OFF_SECONDS s (off the CPU)"
  timeout $((RUN_SECONDS + 120)) python3 "$SCRIPTS/capture.py" during --port "$PORT" --cpu "$CPU_AT,$CPU_SECONDS" \
    --off-cpu "$OFF_AT,$OFF_SECONDS" --into "$stage" &
  CAPTURE_PID=$!
  STARTED+=("$CAPTURE_PID")
  wait "$LOAD_PID" || status=$?
  forget "$LOAD_PID"
  load=$(awk -v a="$load" -v b="$(children_seconds)" 'BEGIN { print b - a }')
  noise_end "$load"
  python3 "$SCRIPTS/capture.py" cpu "${NODES[@]}" >"$stage/cpu.after"
  ((status == 0)) || {
    printf 'The load tool failed (exit code %d). It said: %s\n' "$status" "$(tail -n 3 "$LOAD_LOG")" >&2
    exit 1
  }
  wait "$CAPTURE_PID" || { printf 'The captures of %s failed.\n' "$run" >&2 && exit 1; }
  forget "$CAPTURE_PID"
  progress "$run: pages and pictures"
  python3 "$SCRIPTS/capture.py" formats --port "$PORT" --into "$stage" || exit 1
  if [[ $PICTURES != none ]]; then
    for svg in "$stage"/*.svg; do
      [[ ! -e $svg ]] || png "$svg" "${svg%.svg}.png"
    done
  fi
  name=${started_at}_${TAG}_${run}_t${THREADS}_c${CONNECTIONS}_R${RATE}_d${DURATION}
  python3 "$SCRIPTS/report.py" run "$stage" name="$name" run="$run" method="$method" ack="$ack" from="$of" set="$SET" tag="$TAG" \
    started_at="$started_at" tool="$TOOL" tool_version="$TOOL_VERSION" koltso="$VERSION" binary="$KOLTSO" rustc="$RUSTC" command="${command[*]/#$REPOSITORY\//}" \
    duration_s="$RUN_SECONDS" threads="$THREADS" connections="$CONNECTIONS" rate="$RATE" keys="$KEYS" size="$VALUE_SIZE" sync="$SYNC" \
    node_threads="$NODE_THREADS" nodes="$(IFS=, && echo "${NODES[*]}")" ports="$(IFS=, && echo "${NODE_PORTS[*]}")" \
    load_average="$busy" load_cpu_s="$load" others_percent="$OTHERS" steal_percent="$STOLEN" || exit 1
  PARTIAL=$OUT/.partial-$$
  # shellcheck disable=SC2015
  mkdir -p "$OUT" && cp -r -- "$stage" "$PARTIAL" && mv -- "$PARTIAL" "$OUT/$name" || {
    printf 'The folder %s cannot be written.\n' "$OUT/$name" >&2
    exit 1
  }
  PARTIAL=''
  progress "$run: $(<"$OUT/$name/line.txt")"
  rm -f -- "$OUT/$name/line.txt"
}

PICTURES=$(command -v rsvg-convert || command -v chromium || echo none)
[[ $PICTURES != none ]] || progress 'neither rsvg-convert (librsvg2-bin) nor chromium is here: no PNG, the report shows the SVG'
if [[ $TOOL == wrk2 ]]; then TOOL_VERSION=$(wrk2 -v 2>&1 | head -n 1); else TOOL_VERSION=$VERSION; fi
RUSTC=$(grep -a -o -m 1 'rustc version [0-9][0-9.a-z-]* ([^)]*)' "$KOLTSO" | head -n 1)
SET=$(date +%Y-%m-%d-%H-%M-%S)_$TAG
plan_captures
progress 'starting three nodes'
start_cluster
progress "filling $KEYS keys, three copies each, values of $VALUE_SIZE bytes"
fill "$KEYS"
for run in "${RUN_LIST[@]}"; do run_one "$run"; done
progress 'stopping the nodes'
stop_cluster
python3 "$SCRIPTS/report.py" summary "$OUT" || exit 1
progress "done: $OUT/README.md"
