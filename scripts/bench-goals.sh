#!/usr/bin/env bash
# The goals of docs/PERFORMANCE.md that compare-peers.sh does not measure, one section each:
#
#   memory      anonymous memory a key: 3 million keys of 8 and of 200 bytes against the empty
#               server
#   recovery    time from start to the `ready` line with 3 million keys, after SIGTERM and kill -9
#   range       one GET /v0/entities over a million records of 100 bytes: records/s, and by how much
#               memory grows meanwhile
#   compaction  a million keys overwritten twice: disk against live bytes, and the latencies at a
#               steady 10 000 PUT/s while compaction works, beside nginx with the same tool
#   always      PUT/s with --sync always against --sync os
#
# One server runs at a time, with all its threads on the server core; the load is on the load core.
# Every wait has a limit.
set -u -o pipefail

SCRIPTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
KOLTSO=$SCRIPTS/../target/release/koltso
SERVER_CORE=0 LOAD_CORE=1
STYLE=plain FOLDER=${TMPDIR:-/tmp} ROUNDS=3
KEYS=3000000 RECORDS=1000000 SECONDS_STEADY=30 RATE=10000
SECTIONS=()

# shellcheck source-path=SCRIPTDIR source=bench-lib.sh
source "$SCRIPTS/bench-lib.sh"

usage() {
  cat <<USAGE
usage: scripts/bench-goals.sh [options] [memory] [recovery] [range] [compaction] [always]     (all sections unless named)
  --koltso PATH     the binary (target/release/koltso of this repository)
  --keys N          keys of memory and recovery (3000000)
  --records N       records of range and compaction (1000000)
  --rounds N        rounds of recovery, range and always (3)
  --seconds N       recorded seconds of the steady load of compaction, at least 5 (30)
  --server-core N, --load-core N   (0 and 1)
  --folder PATH     where the data go, on a real disk ($FOLDER)
  --markdown        tables in markdown
USAGE
}

while (($#)); do
  case $1 in
    --markdown) STYLE=markdown ;;
    --help | -h) usage && exit 0 ;;
    memory | recovery | range | compaction | always) SECTIONS+=("$1") ;;
    --koltso | --folder | --keys | --records | --rounds | --seconds | --server-core | --load-core)
      (($# > 1)) || fail "$1 needs a value."
      case $1 in
        --koltso) KOLTSO=$2 ;;
        --folder) FOLDER=$2 ;;
        *)
          [[ $2 =~ ^[0-9]{1,8}$ ]] || fail "$1 needs a number, not '$2'."
          case $1 in
            --keys) KEYS=$2 ;;
            --records) RECORDS=$2 ;;
            --rounds) ROUNDS=$2 ;;
            --seconds) SECONDS_STEADY=$2 ;;
            --server-core) SERVER_CORE=$2 ;;
            --load-core) LOAD_CORE=$2 ;;
          esac
          ;;
      esac
      shift
      ;;
    *) usage >&2 && fail "Unknown option or section $1." ;;
  esac
  shift
done
((ROUNDS >= 1 && KEYS >= 10 && RECORDS >= 10 && SECONDS_STEADY >= 5)) || fail "--rounds, --keys, --records or --seconds is too small."
((${#SECTIONS[@]})) || SECTIONS=(memory recovery range compaction always)

TOOLS=(python3=python3 curl=curl taskset=util-linux)
[[ " ${SECTIONS[*]} " != *' compaction '* ]] || TOOLS+=(nginx=nginx-light jq=jq wrk2=wrk2)
[[ " ${SECTIONS[*]} " != *' always '* ]] || TOOLS+=(wrk=wrk)
need_tools "${TOOLS[@]}"
need_koltso
bench_begin "$FOLDER"

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", b ? a / b : 0 }'; }

remove_data() { rm -rf -- "$WORK/data"; }

# Waits until COMMAND's number has not changed by more than one per cent for 3 s; prints the number
# and the seconds that this took.
settle() { # settle LIMIT_SECONDS COMMAND...
  local limit=$1 before now still=0 waited=0
  shift
  before=$("$@")
  while ((still < 6 && waited++ < limit * 2)); do
    pause 0.5
    now=$("$@")
    if ((now - before > before / 100 || before - now > before / 100)); then still=0 before=$now; else ((still++)); fi
  done
  printf '%s' "$before"
}

section_memory() {
  local size empty loaded peak
  {
    printf 'keys of\tempty server, KB\tpeak while loading, KB\tloaded, KB\tbytes a key\twanted\treached\n'
    for size in 8 200; do
      start_koltso "$WORK/data" --sync 1s
      load_keys "$PORT" 10 --key-size "$size" --value-size 16 # the connections' buffers are part of the empty server
      empty=$(settle 10 anonymous_kb "$PID")
      watch_memory "$PID" &
      local watcher=$!
      load_keys "$PORT" "$KEYS" --key-size "$size" --value-size 16
      progress "memory, keys of $size bytes: $(<"$WORK/load.log")"
      loaded=$(settle 30 anonymous_kb "$PID")
      kill "$watcher" 2>/dev/null
      wait "$watcher" 2>/dev/null
      peak=$(awk '{ print $1 }' "$WORK/peak")
      local a_key
      a_key=$(awk -v a="$loaded" -v b="$empty" -v n="$KEYS" 'BEGIN { printf "%.1f", (a - b) * 1024 / n }')
      printf '%s bytes\t%s\t%s\t%s\t%s\t<= 16\t%s\n' "$size" "$empty" "$peak" "$loaded" "$a_key" "$(verdict "$a_key <= 16")"
      stop_server "$PID" TERM 15
      remove_data
    done
  } >"$WORK/table"
  report "Anonymous memory a key, $KEYS keys, values of 16 bytes"
}

# Keeps the most anonymous and file memory that it has seen of a process, in KB, in $WORK/peak,
# until it is ended.
watch_memory() { # watch_memory PID
  local name kb _ anonymous=0 file=0
  while alive "$1"; do
    while read -r name kb _; do
      case $name in
        RssAnon:) ((kb > anonymous)) && anonymous=$kb ;;
        RssFile:) ((kb > file)) && file=$kb ;;
      esac
    done <"/proc/$1/status"
    printf '%s %s\n' "$anonymous" "$file" >"$WORK/peak"
    pause 0.02
  done
}

# Checks that the first, the last and a middle key are there: without them the start would mean
# nothing.
check_keys() { # check_keys PORT COUNT KEY_SIZE
  local number key answer
  for number in 0 $(($2 / 2)) $(($2 - 1)); do
    key=$(printf '%*s' $(($3 - 8)) '' | tr ' ' k)$(printf '%08d' "$number")
    answer=$(curl -s -m 10 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$1/v0/entity?id=$key")
    [[ $answer == 200 ]] || {
      printf 'Key %s was acknowledged and answers %s after the restart.\n' "$key" "$answer" >&2
      exit 1
    }
  done
}

section_recovery() {
  local round signal name ms
  {
    printf 'after\tround\tstart to ready, ms\twanted\treached\n'
    for name in 'SIGTERM' 'kill -9'; do
      signal=TERM
      [[ $name == SIGTERM ]] || signal=KILL
      start_koltso "$WORK/data" --sync 1s
      load_keys "$PORT" "$KEYS" --key-size 8 --value-size 16
      progress "recovery: $(<"$WORK/load.log")"
      for ((round = 1; round <= ROUNDS; round++)); do
        stop_server "$PID" "$signal" 30
        start_koltso "$WORK/data" --sync 1s
        check_keys "$PORT" "$KEYS" 8
        ms=$((START_US / 1000))
        printf '%s\t%d\t%d\t<= 500\t%s\n' "$name" "$round" "$ms" "$(verdict "$ms <= 500")"
        # Only what was written since the last start is unsealed: overwrite a tenth, so that each
        # round has such a tail.
        load_keys "$PORT" $((KEYS / 10)) --key-size 8 --value-size 16
      done
      stop_server "$PID" TERM 30
      remove_data
    done
  } >"$WORK/table"
  report "Start with $KEYS keys of 8 bytes, files in the page cache (round 1 after the whole load, then after a tenth of it again)"
}

section_range() {
  local round before peak bytes seconds records rate file_before
  start_koltso "$WORK/data" --sync 1s
  load_keys "$PORT" "$RECORDS" --key-size 16 --value-size 84
  progress "range: $(<"$WORK/load.log")"
  {
    printf 'round\trecords\tseconds\trecords/s\tanonymous before, KB\tmost meanwhile, KB\tmapped before, KB\tmost meanwhile, KB\twanted\treached\n'
    for ((round = 1; round <= ROUNDS; round++)); do
      before=$(settle 10 anonymous_kb "$PID")
      file_before=$(file_kb "$PID")
      watch_memory "$PID" &
      local watcher=$!
      read -r bytes seconds < <(taskset -c "$LOAD_CORE" curl -s -m 120 -o /dev/null -w '%{size_download} %{time_total}\n' \
        "http://127.0.0.1:$PORT/v0/entities?start=0")
      pause 0.1
      kill "$watcher" 2>/dev/null
      wait "$watcher" 2>/dev/null
      read -r peak file_peak <"$WORK/peak"
      records=$((bytes / 101)) # key, newline, value
      ((records * 101 == bytes && records == RECORDS)) ||
        progress "The range had $bytes bytes; $RECORDS records would be $((RECORDS * 101))."
      rate=$(awk -v n="$records" -v t="$seconds" 'BEGIN { printf "%.0f", n / t }')
      printf '%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t>= 1000000\t%s\n' "$round" "$records" "$seconds" "$rate" "$before" "$peak" \
        "$file_before" "$file_peak" "$(verdict "$rate >= 1000000")"
    done
  } >"$WORK/table"
  stop_server "$PID" TERM 15
  remove_data
  report "Range over $RECORDS records of 100 bytes (keys of 16, values of 84), read by curl"
}

status_number() { # status_number JQ_PATH: 0 where /status does not have it
  curl -s -m 5 "http://127.0.0.1:$PORT/status" | jq -r "$1 // 0" 2>/dev/null || printf 0
}

# wrk2 records nothing in its first 10 s. So the second overwriting of all keys is timed to end just
# before that, and compaction has most to do while the latencies are recorded.
section_compaction() {
  local began load_us live disk disk_after payload before after figures waited
  local arguments=(--keys "$RECORDS" --size 128) seconds=$((SECONDS_STEADY + 11)) recorded_at=10.4

  steady_nginx() { # steady_nginx ROW
    progress "compaction: $1"
    start_nginx 128
    run_wrk2 put "$seconds" "$RATE" "${arguments[@]}"
    stop_server "$MASTER" TERM 5
    latency_row "$1"
  }
  printf 'server\tanswers/s\tp50, ms\tp99, ms\tp99.9, ms\tmax, ms\tnot 2xx\tothers\tstolen\n' >"$WORK/table"
  latency_row() { # latency_row ROW: others and stolen are per cent of a core that disturbed this run
    printf '%s\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s %%\t%s %%\n' "$1" "$(awk -v n="$REQUESTS" -v t="$SECONDS_RUN" 'BEGIN { print n / t }')" \
      "$P50" "$P99" "$P999" "$MAX" "$NOT_2XX" "$OTHERS" "$STOLEN" >>"$WORK/table"
  }
  steady_nginx 'nginx, before'
  before=$P999

  start_koltso "$WORK/data" --sync 1s
  load_keys "$PORT" "$RECORDS"
  run_wrk2 put "$seconds" "$RATE" "${arguments[@]}"
  latency_row 'Koltso, nothing overwritten before'
  began=$(now_us)
  load_keys "$PORT" "$RECORDS"
  load_us=$(($(now_us) - began))
  progress "compaction: overwritten once: $(<"$WORK/load.log")"

  began=$(now_us)
  {
    pause "$(awk -v us="$load_us" 'BEGIN { wait = 9 - us * 1.3 / 1e6; print (wait > 0.01 ? wait : 0.01) }')"
    load_keys "$PORT" "$RECORDS"
    awk -v us=$(($(now_us) - began)) 'BEGIN { printf "%.1f\n", us / 1e6 }' >"$WORK/overwritten_at"
    pause "$(awk -v us=$(($(now_us) - began)) -v at="$recorded_at" 'BEGIN { wait = at - us / 1e6; print (wait > 0.01 ? wait : 0.01) }')"
    printf '%s\t%s\n' "$(disk_bytes "$WORK/data")" "$(status_number .storage.live_bytes)" >"$WORK/at_begin"
  } &
  local churn=$!
  run_wrk2 put "$seconds" "$RATE" "${arguments[@]}"
  wait "$churn" || exit 1
  disk=$(disk_bytes "$WORK/data")
  latency_row 'Koltso, compacting'
  figures="$P999 $MAX"
  mv "$WORK/table" "$WORK/latencies"
  printf 'The overwriting ended %s s into the run; what counts begins at %s s. Disk then: %s bytes; at the end of the run: %s bytes.\n' \
    "$(<"$WORK/overwritten_at")" "$recorded_at" "$(cut -f 1 "$WORK/at_begin")" "$disk"
  awk -v at="$(<"$WORK/overwritten_at")" -v begin="$recorded_at" 'BEGIN { exit !(at > begin) }' &&
    echo 'Warning: the overwriting reached into the recorded time, so this is not a steady load.'
  [[ $(cut -f 1 "$WORK/at_begin") -gt $disk ]] ||
    echo 'Warning: the disk use did not shrink while the latencies were taken, so compaction may not have worked then.'

  # Compaction has caught up when the disk use has not changed for 5 s; wait two minutes at most.
  local previous=-1 same=0
  for ((waited = 0; waited < 120 && same < 5; waited++)); do
    disk_after=$(disk_bytes "$WORK/data")
    if ((disk_after == previous)); then ((same++)); else same=0; fi
    previous=$disk_after
    pause 1
  done
  live=$(status_number .storage.live_bytes)
  payload=$((RECORDS * (16 + 128)))
  {
    printf 'keys and values, bytes\tlive bytes (/status)\tdisk, bytes\tdisk to live\twanted\treached\n'
    printf '%d\t%s\t%s\t%s\t<= 2\t%s\n' "$payload" "$live" "$disk_after" "$(ratio "$disk_after" "$live")" \
      "$(verdict "$live > 0 && $disk_after <= 2 * $live")"
  } >"$WORK/table"
  report "Disk after $RECORDS keys were overwritten twice, ${waited} s after the end of the load"
  printf 'What /status says of storage: %s\n' "$(curl -s -m 5 "http://127.0.0.1:$PORT/status" | jq -c .storage)"
  check_keys "$PORT" "$RECORDS" 16
  stop_server "$PID" TERM 15
  remove_data

  mv "$WORK/latencies" "$WORK/table"
  steady_nginx 'nginx, after'
  after=$P999
  report "PUT at a steady $RATE/s, $CONNECTIONS connections, $SECONDS_STEADY s recorded; $RECORDS keys overwritten twice"
  awk -v n="$before $after" -v k="$figures" 'BEGIN { split(n, a); split(k, b); mean = (a[1] + a[2]) / 2
    printf "p99.9 to nginx (mean of both): %.2f (wanted <= 2, %s); longest stall %.1f ms (wanted <= 100, %s)\n", \
      b[1] / mean, (b[1] <= 2 * mean ? "reached" : "missed"), b[2], (b[2] <= 100 ? "reached" : "missed") }'
}

section_always() {
  local round mode
  declare -A rate
  {
    printf 'round\tos, PUT/s\talways, PUT/s\tratio\twanted\treached\n'
    for ((round = 1; round <= ROUNDS; round++)); do
      for mode in os always; do
        start_koltso "$WORK/data" --sync "$mode"
        run_wrk put 5 --keys 100000 --size 128
        ((NOT_2XX == 0)) || progress "always: $NOT_2XX answers with --sync $mode were not 2xx."
        rate[$mode]=$(awk -v n="$REQUESTS" -v t="$SECONDS_RUN" 'BEGIN { printf "%.0f", n / t }')
        stop_server "$PID" TERM 15
        remove_data
      done
      printf '%d\t%s\t%s\t%s\t>= 0.5\t%s\n' "$round" "${rate[os]}" "${rate[always]}" "$(ratio "${rate[always]}" "${rate[os]}")" \
        "$(verdict "${rate[always]} >= 0.5 * ${rate[os]}")"
    done
  } >"$WORK/table"
  report "PUT with --sync always against --sync os, $CONNECTIONS connections, values of 128 bytes"
}

machine_line
printf '%s\n' "$("$KOLTSO" --version 2>/dev/null || echo 'koltso, version unknown')"
for section in "${SECTIONS[@]}"; do
  progress "section $section"
  "section_$section"
done
echo
noise_line || true
