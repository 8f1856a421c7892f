#!/usr/bin/env bash
# What seeing inside costs, and whether what is seen is right: the goals of the profiler on a
# running server, one section each:
#
#   overhead    closed loop, CPU a request: slices without a capture and with one of 99, 199 and
#               999 Hz in turn, measured for the whole process (so the profiler's thread counts) and
#               for the data core's thread alone (which perf's interrupts hit). A capture begins
#               before its slice and ends after it; what its end costs, symbols above all, is
#               printed apart. (The storage's threads seal and compact in bursts, partly after the
#               slice: the figure that counts is the process without them.)
#   sampling    the same for the always-on allocation sampling, against a build without it (--plain,
#               see below)
#   accounting  what the samples of a CPU capture add up to, against the accounts of the scheduler
#               and of /proc/PID/stat
#   stacks      the share of samples whose stack reaches its thread's entry
#   answer      from the end of a capture's time to the last byte of its answer, under a closed loop
#               and at a steady rate
#   latency     p99 at a steady rate while a capture of each kind begins, runs and is answered,
#               against runs without one before and after it; for a node alone, and for the first
#               node of three with ack=2&from=3
#   memory      memory of the server over many captures under a steady load
#
# overhead, sampling, accounting and stacks have the server on one core and the load on another;
# answer, latency and memory have both on all processors that this process may use, unpinned, as in
# the standard runs of bench-cluster.sh.
#
# Noise is measured in the same session in the same way: runs without a capture are compared with
# their own neighbours. A figure that is above its goal but no larger than those are in the middle
# is `within noise`, neither reached nor missed: repeat it on a quieter machine.
#
# The rule of `stacks`: from the outermost frame of a stack on, frames of libraries without symbols
# (`[libc.so.6]`) are skipped; the first frame with a name must be clone3, clone, start_thread,
# _start, main, one of their callers in glibc or std, the std thread's thread_start, or
# ret_from_fork of a kernel thread (crates/profiling/src/classify/names.rs has the list). Every
# other stack counts as not rooted, also those that are known to be lost: in the vdso, and leaves in
# glibc, which has no frame pointers.
#
# A build for --plain is this tree with the line below #[global_allocator] in src/main.rs replaced by
#   static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
# built with `cargo build --release` and copied elsewhere (one import is unused then). Both builds
# must be made at the same path, with the same compiler.
#
# Every wait has a limit. This ends only processes that it started (the nodes of a cluster are
# children of one of them).
set -u -o pipefail

SCRIPTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
KOLTSO=$SCRIPTS/../target/release/koltso
PLAIN=''
PINNED_SERVER=0 PINNED_LOAD=1
ALL_CORES=$(awk '/^Cpus_allowed_list:/ { print $2 }' /proc/self/status)
STYLE=plain FOLDER=${TMPDIR:-/tmp} SYNC=1s VALUE_SIZE=128 KEYS=100000 RATE=10000
ROUNDS=3 SECONDS_EACH=8 CAPTURE_SECONDS=10 ANSWER_SECONDS=30
RECORDED=24 LATENCY_ROUNDS=1 TOOL=wrk2 CAPTURES=100 REST=30
OPERATIONS='get put' TARGETS='alone cluster'
KINDS_ALL='cpu-99 cpu-499 cpu-999 allocs allocs-heatmap heap block mutex offcpu' KINDS=$KINDS_ALL
SECTIONS=() ENGINE='an engine that was not asked'
declare -A PATHS=( # below /debug/pprof/, with seconds= to come
  [cpu-99]='profile?hz=99' [cpu-499]='profile?hz=499' [cpu-999]='profile?hz=999' [allocs]='allocs?format=pprof'
  [allocs-heatmap]='heatmap?event=allocs' [heap]='heap?format=pprof' [block]='block?format=pprof' [mutex]='mutex?format=pprof'
  [offcpu]='offcpu?format=pprof')
STORAGE_THREADS='^koltso-(seal|compact|scrub|digests|sync|provisio)'
LARGE_SIZE=20000 LARGE_KEYS=3000 # what fits into wrk's pool
ANSWER_SECONDS_MAX=1 ROOTED_MIN=95 ACCOUNTED_WITHIN=5
GROWTH_MAX_KB=8192 # from the 16th CPU capture to the last: with as many others, twice what is kept is made by then

# shellcheck source-path=SCRIPTDIR source=bench-lib.sh
source "$SCRIPTS/bench-lib.sh"
# shellcheck source-path=SCRIPTDIR source=cluster-lib.sh
source "$SCRIPTS/cluster-lib.sh"

usage() {
  cat <<USAGE
usage: scripts/bench-profiling.sh [options] [overhead] [sampling] [accounting] [stacks] [answer] [latency] [memory]
                                  (all sections unless named; about 90 minutes, half of them for latency)
  --koltso PATH        the binary (target/release/koltso of this repository)
  --plain PATH         the same without sampled allocations, for sampling; how that is built is in the head of this script
  --rounds N           rounds of all sections but latency and memory (3)
  --seconds N          seconds a slice of overhead and sampling (8)
  --capture-seconds N  seconds a capture of accounting and stacks, at most 200 (10)
  --answer-seconds N   seconds a capture of answer, at most 200 (30)
  --recorded N         recorded seconds of a run of latency, 6 to 64; the capture has four less (24)
  --latency-rounds N   rounds of latency (1)
  --tool wrk2|koltso   load tool of latency: wrk2 records after 10 s and adds up to 1 ms; koltso bench after 2 s, none (wrk2)
  --kinds LIST         captures of latency ('$KINDS_ALL')
  --targets LIST       what latency asks ('$TARGETS')
  --operations LIST    of overhead, accounting, stacks and latency ('$OPERATIONS')
  --captures N         CPU captures of memory, at least 17; as many others go with them (100)
  --rest N             seconds of memory's load before and its pause after the captures (30)
  --rate N             requests/s of answer, latency and memory (10000)
  --keys N, --connections N, --value-size N, --sync MODE   (100000, 64, 128, 1s)
  --server-core N, --load-core N   of the sections that pin (0 and 1)
  --folder PATH        where the data go, on a real disk with 20 GB free ($FOLDER)
  --markdown           tables in markdown
USAGE
}

declare -A TEXTS=([--koltso]=KOLTSO [--plain]=PLAIN [--folder]=FOLDER [--sync]=SYNC [--tool]=TOOL [--kinds]=KINDS [--targets]=TARGETS
  [--operations]=OPERATIONS)
declare -A NUMBERS=([--rounds]=ROUNDS [--seconds]=SECONDS_EACH [--capture-seconds]=CAPTURE_SECONDS [--answer-seconds]=ANSWER_SECONDS
  [--recorded]=RECORDED [--latency-rounds]=LATENCY_ROUNDS [--captures]=CAPTURES [--rest]=REST [--rate]=RATE [--keys]=KEYS
  [--connections]=CONNECTIONS [--value-size]=VALUE_SIZE [--server-core]=PINNED_SERVER [--load-core]=PINNED_LOAD)
while (($#)); do
  case $1 in
    --markdown) STYLE=markdown ;;
    --help | -h) usage && exit 0 ;;
    overhead | sampling | accounting | stacks | answer | latency | memory) SECTIONS+=("$1") ;;
    *)
      variable=${TEXTS[$1]:-${NUMBERS[$1]:-}}
      [[ -n $variable ]] || { usage >&2 && fail "Unknown option or section $1."; }
      (($# > 1)) || fail "$1 needs a value."
      [[ -n ${TEXTS[$1]:-} || $2 =~ ^[0-9]{1,8}$ ]] || fail "$1 needs a number, not '$2'."
      printf -v "$variable" %s "$2"
      shift
      ;;
  esac
  shift
done
among --kinds "$KINDS_ALL" "$KINDS"
among --targets 'alone cluster' "$TARGETS"
among --operations 'get put' "$OPERATIONS"
among --tool 'wrk2 koltso' "$TOOL"
((ROUNDS >= 1 && LATENCY_ROUNDS >= 1 && SECONDS_EACH >= 1 && RATE >= 1 && REST >= 1)) || fail "Rounds, seconds and rates must be at least 1."
((CAPTURE_SECONDS >= 1 && CAPTURE_SECONDS <= 200 && ANSWER_SECONDS >= 1 && ANSWER_SECONDS <= 200 && SECONDS_EACH <= 200)) ||
  fail "--seconds, --capture-seconds and --answer-seconds are 1 to 200."
((RECORDED >= 6 && RECORDED <= 64)) || fail "--recorded is 6 to 64: the longest off-CPU capture has 60 s."
((CAPTURES >= 17 && KEYS >= 10 && VALUE_SIZE >= 8 && CONNECTIONS >= 4)) || fail "--captures, --keys, --value-size or --connections is too small."
((${#SECTIONS[@]})) || SECTIONS=(overhead sampling accounting stacks answer latency memory)
SERVER_CORE=$PINNED_SERVER LOAD_CORE=$PINNED_LOAD

need_tools python3=python3 curl=curl jq=jq taskset=util-linux timeout=coreutils wrk=wrk wrk2=wrk2
need_koltso
[[ -z $PLAIN || -x $PLAIN ]] || fail "No Koltso binary at $PLAIN, which --plain names."
bench_begin "$FOLDER"
trap cluster_bench_end EXIT

figures() { timeout 60 python3 "$SCRIPTS/profiling-figures.py" "$@"; }

pinned() { SERVER_CORE=$PINNED_SERVER LOAD_CORE=$PINNED_LOAD; }
unpinned() { SERVER_CORE=$ALL_CORES LOAD_CORE=$ALL_CORES; }

# Starts a node alone, pinned or unpinned as asked before, with all keys, and reads its symbols once
# (unless called with `cold`).
start_alone() { # start_alone [cold]
  local flags=(--sync "$SYNC")
  [[ $SERVER_CORE != "$ALL_CORES" ]] || flags+=(--no-pin)
  start_koltso "$WORK/data" "${flags[@]}"
  MEASURED=("$PID")
  load_keys "$PORT" "$KEYS" --value-size "$VALUE_SIZE"
  [[ ${1:-} == cold ]] || warm
  pause 1 # sealing and syncing of what was written belongs to no measurement
}

stop_alone() {
  stop_server "$PID" TERM 20
  MEASURED=()
  rm -rf -- "$WORK/data"
}

warm() { capture 1 'profile?hz=999' && ENGINE=$(divided '.engine | split(";")[0]'); }

divided() { # divided JQ_FILTER: of the last capture's division
  "$KOLTSO" profile "$WORK/capture" --classes --json | jq -r "$1"
}

all_2xx() { ((NOT_2XX == 0)) || progress "Not a fair figure: $NOT_2XX answers of $1 were not 2xx."; }

# Runs a slice of the closed loop. Appends to $WORK/runs what a request cost in us: without the
# storage's threads, in all, and on the core's thread.
run_slice() { # run_slice SERIES LABEL KIND SCRIPT [ARGUMENT...]
  local series=$1 label=$2 kind=$3 core storage
  shift 3
  core=$(thread_ns '^koltso-core-0$') storage=$(thread_ns "$STORAGE_THREADS")
  run_wrk "$1" "$SECONDS_EACH" "${@:2}"
  alive "$PID" || fail "The server ended under load ($series, $kind). It said: $(grep -A 1 panicked "$WORK/koltso-$PORT.log" || tail -n 3 "$WORK/koltso-$PORT.log")"
  core=$(($(thread_ns '^koltso-core-0$') - core)) storage=$(($(thread_ns "$STORAGE_THREADS") - storage))
  awk -v OFS='\t' -v series="$series" -v label="$label" -v kind="$kind" -v all="$USER_US $SYS_US" -v core="$core" -v storage="$storage" \
    -v n="$REQUESTS" 'BEGIN { n = n ? n : 1; split(all, a, " "); all = a[1] + a[2]
      print series, label, kind, all - storage / 1000 / n, all, core / 1000 / n }' >>"$WORK/runs"
  all_2xx "$series, $kind"
  progress "$series, $kind: $(each_second)/s; us a request without storage's threads, of all, of the core's thread: $(tail -n 1 "$WORK/runs" | cut -f 4- | tr '\t' ' ')"
}

# ---- overhead

section_overhead() {
  local round method hz order=(99 199 999)
  pinned
  : | tee "$WORK/runs" >"$WORK/ends"
  for ((round = 1; round <= ROUNDS; round++)); do
    start_alone
    for method in $OPERATIONS; do
      run_wrk "$method" 2 --keys "$KEYS" --size "$VALUE_SIZE"
      await_idle
      overhead_slice "$round" "$method" none
      for hz in "${order[@]}"; do
        overhead_slice "$round" "$method" "$hz"
        overhead_slice "$round" "$method" none
      done
    done
    stop_alone
    order=("${order[@]:1}" "${order[0]}") # so that drift hits all of them
  done
  figures beside overhead <"$WORK/runs" >"$WORK/table" || exit 1
  report "overhead: CPU a request, closed loop, wrk -t1 -c$CONNECTIONS, values of $VALUE_SIZE bytes, $ROUNDS rounds of slices of $SECONDS_EACH s; each capture beside the slices before and after it. By $ENGINE"
  {
    printf 'capture\tCPU after the slice, ms\n'
    over_rounds m <"$WORK/ends"
  } >"$WORK/table"
  report 'overhead: CPU of the process after the slice, without load: the rest of the capture (about 4 s), symbols, the answer'
}

overhead_slice() { # overhead_slice ROUND METHOD none|HZ
  local ended
  if [[ $3 != none ]]; then
    capture_begin $((SECONDS_EACH + 5)) "profile?hz=$3"
    pause 0.5
  fi
  run_slice "overhead, round $1, ${2^^}" "${2^^}" "$3" "$2" --keys "$KEYS" --size "$VALUE_SIZE"
  if [[ $3 != none ]]; then
    alive "$CAPTURE_PID" || progress "Not a fair figure: the capture of $3 Hz ended before its slice did."
    ended=$(process_ticks)
    capture_end
    printf '%s Hz\t%s\n' "${2^^}, $3" "$(ticks_to $(($(process_ticks) - ended)) 1000)" >>"$WORK/ends"
  fi
  await_idle
}

# ---- sampling

# Both builds run at once, on one core; only one of them has load. So their slices can be close to
# each other.
section_sampling() {
  local round kind koltso=$KOLTSO order=(sampling plain plain sampling)
  local -A pids=() ports=()
  [[ -n $PLAIN ]] || {
    progress "sampling is skipped: --plain PATH has to name a build without it; the head of scripts/bench-profiling.sh says how it is made."
    return
  }
  pinned
  : >"$WORK/runs"
  for ((round = 1; round <= ROUNDS; round++)); do
    for kind in sampling plain; do
      [[ $kind == plain ]] && KOLTSO=$PLAIN
      start_koltso "$WORK/data-$kind" --sync "$SYNC"
      KOLTSO=$koltso
      pids[$kind]=$PID ports[$kind]=$PORT MEASURED=("$PID")
      load_keys "$PORT" "$KEYS" --value-size "$VALUE_SIZE"
    done
    sampling_slices "$round" GET get --keys "$KEYS"
    sampling_slices "$round" PUT put --keys "$KEYS" --size "$VALUE_SIZE"
    sampling_slices "$round" "PUT of $LARGE_SIZE bytes" put --keys "$LARGE_KEYS" --key-size 24 --size "$LARGE_SIZE"
    for kind in sampling plain; do stop_server "${pids[$kind]}" TERM 20; done
    MEASURED=()
    rm -rf -- "$WORK/data-sampling" "$WORK/data-plain"
    [[ ${order[0]} == plain ]] && order=(sampling plain plain sampling) || order=(plain sampling sampling plain)
  done
  figures builds <"$WORK/runs" >"$WORK/table" || exit 1
  report "sampling: CPU a request without and with sampled allocations, closed loop, wrk -t1 -c$CONNECTIONS, $ROUNDS rounds of two slices each of $SECONDS_EACH s"
}

sampling_slices() { # sampling_slices ROUND WHAT METHOD [ARGUMENT...]
  local round=$1 what=$2 method=$3 kind warmed=''
  shift 3
  for kind in "${order[@]}"; do
    PID=${pids[$kind]} PORT=${ports[$kind]} MEASURED=("${pids[$kind]}")
    [[ $warmed == *"$kind"* ]] || { run_wrk "$method" 1 "$@" && await_idle; }
    warmed+=" $kind"
    run_slice "sampling, round $round, $what" "$what" "$kind" "$method" "$@"
    await_idle
  done
}

# ---- accounting and stacks

# In each round, and in the middle of a closed loop of each operation, COMMAND ROUND WHAT takes a
# capture at each rate.
in_loops() { # in_loops COMMAND: sets TICKS, those of the process in that time
  local round method hz from
  pinned
  : >"$WORK/runs"
  for ((round = 1; round <= ROUNDS; round++)); do
    start_alone
    for method in $OPERATIONS; do
      for hz in 99 999; do
        wrk_begin "$method" $((CAPTURE_SECONDS + 4)) --keys "$KEYS" --size "$VALUE_SIZE"
        pause 2
        from=$(process_ticks)
        capture_begin "$CAPTURE_SECONDS" "profile?hz=$hz"
        pause "$CAPTURE_SECONDS"
        TICKS=$(($(process_ticks) - from))
        capture_end
        wrk_end
        all_2xx "$method"
        "$1" "$round" "${method^^}, $hz Hz"
      done
    done
    stop_alone
  done
}

section_accounting() {
  in_loops accounted
  {
    printf 'capture\tsamples, s\tscheduler, s\tdifference\tlargest\twanted\treached\t/proc/PID/stat, s\tdifference\tlost\tthrottled\n'
    over_rounds mmmxmmss <"$WORK/runs" | awk -F '\t' -v OFS='\t' -v most="$ACCOUNTED_WITHIN" '{ print $1, sprintf("%.3f", $2), sprintf("%.3f", $3),
      sprintf("%+.2f %%", $4), sprintf("%.2f %%", $5), "<= " most " %", ($5 <= most ? "yes" : "no"), sprintf("%.2f", $6), sprintf("%+.2f %%", $7), $8, $9 }'
  } >"$WORK/table"
  report "accounting: CPU that the samples of $CAPTURE_SECONDS s add up to, closed loop; medians of $ROUNDS rounds, the largest difference of all, lost and throttled together. By $ENGINE"
}

accounted() { # accounted ROUND WHAT
  local sum scheduler lost throttled
  read -r sum scheduler lost throttled < <(divided '[.total / 1e9, .accounted_ns / 1e9, .lost, .throttled] | join(" ")')
  [[ -n ${throttled:-} ]] || fail "A capture cannot be read."
  awk -v OFS='\t' -v what="$2" -v a="$sum" -v b="$scheduler" -v lost="$lost" -v throttled="$throttled" -v stat="$(ticks_to "$TICKS" 1)" 'BEGIN {
      off = b > 0 ? (a / b - 1) * 100 : 100; off_stat = stat > 0 ? (a / stat - 1) * 100 : 100
      print what, a, b, off, (off < 0 ? -off : off), stat, off_stat, lost, throttled }' >>"$WORK/runs"
  progress "accounting, round $1, $2: $sum s in samples, $scheduler s by the scheduler"
}

section_stacks() {
  : >"$WORK/left"
  in_loops rooted
  {
    printf 'capture\tsamples, s\tstacks\trooted\twanted\treached\n'
    over_rounds mmm <"$WORK/runs" | awk -F '\t' -v OFS='\t' -v least="$ROOTED_MIN" \
      '{ print $1, sprintf("%.2f", $2), sprintf("%.0f", $4), sprintf("%.2f %%", $3), ">= " least " %", ($3 >= least ? "yes" : "no") }'
  } >"$WORK/table"
  report "stacks: samples whose stack reaches its thread's entry, closed loop, medians of $ROUNDS rounds; the rule is in scripts/bench-profiling.sh. By $ENGINE"
  awk -F '\t' '{ sum[$2] += $1 } END { for (what in sum) printf "%12.3f ms  %s\n", sum[what] / 1e6, what }' "$WORK/left" | sort -rn | head -n 8 >"$WORK/worst"
  [[ ! -s $WORK/worst ]] || printf '\nWhat is not rooted, most first (thread: outermost frame … leaf; all rounds):\n%s\n' "$(cut -c -200 "$WORK/worst")"
}

rooted() { # rooted ROUND WHAT
  local seconds share count
  read -r seconds share count < <(divided '[.total / 1e9, (if .total > 0 then 1e4 * .rooted.value / .total | round / 100 else 0 end), .rooted.stacks] | join(" ")')
  [[ -n ${count:-} ]] || fail "A capture cannot be read."
  divided '.rooted.others[] | "\(.[1])\t\(.[0])"' >>"$WORK/left"
  printf '%s\t%s\t%s\t%s\n' "$2" "$seconds" "$share" "$count" >>"$WORK/runs"
  progress "stacks, round $1, $2: $share % of $seconds s are rooted"
}

# ---- answer

section_answer() {
  local load round format
  unpinned
  : >"$WORK/runs"
  for load in closed "$RATE/s"; do
    start_alone cold
    answer_once "$load" pprof 'the first capture'
    for ((round = 1; round <= ROUNDS; round++)); do
      for format in pprof html svg; do answer_once "$load" "$format" warm; done
    done
    stop_alone
  done
  {
    printf 'load, format\tanswer after, s\tlongest\tbytes\twanted\treached\n'
    over_rounds mxm <"$WORK/runs" | awk -F '\t' -v OFS='\t' -v most="$ANSWER_SECONDS_MAX" '{
      is_warm = $1 ~ /warm$/
      print $1, sprintf("%.3f", $2), sprintf("%.3f", $3), sprintf("%.0f", $4), (is_warm ? "<= " most : ""), (is_warm ? ($2 <= most ? "yes" : "no") : "") }'
  } >"$WORK/table"
  report "answer: from the end of $ANSWER_SECONDS s at 99 Hz to the last byte, GET under load on the same processors; medians of $ROUNDS rounds"
}

answer_once() { # answer_once LOAD FORMAT STATE
  local after half=wrk2 arguments=("$RATE")
  [[ $1 == closed ]] && half=wrk arguments=()
  "${half}_begin" get $((ANSWER_SECONDS + 6)) "${arguments[@]}" --keys "$KEYS"
  pause 2
  capture "$ANSWER_SECONDS" "profile?hz=99&format=$2"
  "${half}_end"
  all_2xx "$1"
  after=$(awk -v t="$TOOK" -v s="$ANSWER_SECONDS" 'BEGIN { printf "%.3f", t - s }')
  printf '%s, %s, %s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$after" "$after" "$BYTES" >>"$WORK/runs"
  progress "answer, $1, $2, $3: $after s after the end, $BYTES bytes"
}

# ---- latency

section_latency() {
  local target round method kind
  unpinned
  WRK_THREADS=4
  : >"$WORK/runs"
  for target in $TARGETS; do
    for ((round = 1; round <= LATENCY_ROUNDS; round++)); do
      QUERY=()
      if [[ $target == alone ]]; then
        start_alone
      else
        start_cluster
        fill "$KEYS"
        warm
        QUERY=(--ack 2 --from 3)
      fi
      for method in $OPERATIONS; do
        latency_run none
        for kind in $KINDS; do
          latency_offered "$kind" || continue
          latency_run "$kind"
          latency_run none
        done
      done
      if [[ $target == alone ]]; then stop_alone; else stop_cluster; fi
    done
  done
  WRK_THREADS=1
  figures beside latency <"$WORK/runs" >"$WORK/table" || exit 1
  report "latency: $TOOL -t4 -c$CONNECTIONS -R$RATE, $RECORDED s recorded, in which a capture of $((RECORDED - 4)) s begins, runs and is answered; $LATENCY_ROUNDS rounds (max: the longest; others and stolen: the most); alone: a node by itself, cluster: the first of three, ack=2&from=3. By $ENGINE"
}

latency_line() { # latency_line KIND VALUE...
  local what="$target, ${method^^}" IFS=$'\t'
  printf '%s\n' "$what $round"$'\t'"$what"$'\t'"$*" >>"$WORK/runs"
}

# Whether this server offers that kind; a short capture shows it, and reads the symbols that it
# needs.
latency_offered() { # latency_offered KIND
  local code
  code=$(curl -s -m 60 -o "$WORK/capture" -w '%{http_code}' "http://127.0.0.1:$PORT/debug/pprof/${PATHS[$1]}&seconds=1")
  case $code in
    200) return 0 ;;
    400 | 404) latency_line "$1" - 'not available' ;;
    501) latency_line "$1" - 'not permitted' ;;
    *) fail "A capture ($1) was answered $code: $(head -n 1 "$WORK/capture")" ;;
  esac
  progress "latency, $target, $1: answered $code, left out"
  return 1
}

latency_run() { # latency_run KIND
  local before=11 said='' # wrk2 records from 10.3 s on; the first second of it has no capture yet
  [[ $TOOL == wrk2 ]] || before=2
  "${TOOL}_begin" "$method" $((before + RECORDED)) "$RATE" --keys "$KEYS" --size "$VALUE_SIZE" "${QUERY[@]}"
  pause "$before"
  if [[ $1 != none ]]; then
    capture $((RECORDED - 4)) "${PATHS[$1]}"
    said=", captured in $TOOK s"
    alive "$LOAD_PID" || progress "The answer of the capture came after the end of the load."
  fi
  "${TOOL}_end"
  latency_line "$1" "$P50" "$P99" "$P999" "$MAX" "$(each_second)" "$NOT_2XX" "$OTHERS" "$STOLEN"
  progress "latency, $target, ${method^^}, $1: p50 $P50, p99 $P99, p99.9 $P999, max $MAX ms, $(each_second)/s, $NOT_2XX not 2xx$said"
}

# ---- memory

section_memory() {
  local made others=('heap?format=pprof' 'allocs?format=pprof' 'offcpu?format=pprof')
  unpinned
  WRK_THREADS=4 LOAD_PID=''
  start_alone cold
  printf 'when\tVmRSS, KB\tRssAnon, KB\tmore than before\tmore than after 16\twanted\treached\n' >"$WORK/table"
  BEFORE=0 SIXTEEN=0
  keep_load
  pause 10
  memory_row 'under load, 10 s'
  rest_under_load
  memory_row "under load, $REST s more"
  [[ $(curl -s -m 60 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$PORT/debug/pprof/${others[2]}&seconds=1") != 501 ]] ||
    others=("${others[@]:0:2}")
  for ((made = 1; made <= CAPTURES; made++)); do
    keep_load
    capture 1 'profile?hz=999'
    capture 1 "${others[made % ${#others[@]}]}"
    case $made in 1 | 16 | "$CAPTURES") memory_row "$made CPU captures and as many others" ;; esac
  done
  rest_under_load
  memory_row "$REST s later, under load"
  stop_server "$LOAD_PID" TERM 5
  pause "$REST"
  memory_row "$REST s later, without load"
  stop_alone
  WRK_THREADS=1
  report "memory: of the server under GET and PUT at $RATE/s while CPU captures of 1 s at 999 Hz and captures of heap, allocations and off-CPU of 1 s take turns. The last 16 captures are kept, 64 MiB at most"
}

rest_under_load() {
  local rested
  for ((rested = 0; rested < REST; rested++)); do keep_load && pause 1; done
}

# Keeps up a steady load, which is started again whenever it ends.
keep_load() {
  if [[ -n $LOAD_PID ]]; then
    alive "$LOAD_PID" && return
    wait "$LOAD_PID"
    forget "$LOAD_PID"
    grep -q '^answers:' "$LOAD_LOG" || fail "wrk2 failed: $(tail -n 3 "$LOAD_LOG")"
  fi
  start_load 120 wrk2 -t4 -c"$CONNECTIONS" -d120s -R"$RATE" --timeout 10s -s "$SCRIPTS/mix.lua" "http://127.0.0.1:$PORT" -- \
    --keys "$KEYS" --size "$VALUE_SIZE"
}

memory_row() { # memory_row WHEN
  local resident anonymous goal='' is_reached='' since=''
  pause 2 # what the last capture took for itself is given back by then
  resident=$(awk '/^VmRSS:/ { print $2 }' "/proc/$PID/status")
  anonymous=$(anonymous_kb "$PID")
  case $1 in
    '16 CPU '*) SIXTEEN=$anonymous ;;
    'under load'*) BEFORE=$anonymous ;;
    '1 CPU '*) ;;
    *) since=$((anonymous - SIXTEEN)) goal="<= $GROWTH_MAX_KB" is_reached=$(verdict "$((anonymous - SIXTEEN)) <= $GROWTH_MAX_KB") ;;
  esac
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$resident" "$anonymous" "$((anonymous - BEFORE))" "$since" "$goal" "$is_reached" >>"$WORK/table"
  progress "memory, $1: $resident KB resident, $anonymous KB anonymous"
}

machine_line
printf '%s\n' "$("$KOLTSO" --version 2>/dev/null || echo 'koltso, version unknown')"
for section in "${SECTIONS[@]}"; do
  progress "section $section"
  "section_$section"
done
echo
noise_line || true
