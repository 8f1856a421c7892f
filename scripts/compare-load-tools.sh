#!/usr/bin/env bash
# Runs wrk2 and `koltso bench` in turn on the same server and prints their figures side by side: do
# they say the same?
#
# Both have the same rate, connections, threads, keys and duration, and the same warm-up: wrk2
# discards what it recorded in its first 10.3 s, so both record what comes after. One server is on
# the server core, the load tool on the load core. `cpu` is what the load tool itself used, in per
# cent of its core. wrk2 waits in whole milliseconds, rounded up, and counts that as latency: expect
# up to 1 ms more below the stalls. Every wait has a limit.
set -u -o pipefail

SCRIPTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
KOLTSO=$SCRIPTS/../target/release/koltso
SERVER_CORE=0 LOAD_CORE=1
STYLE=plain FOLDER=${TMPDIR:-/tmp} ROUNDS=2
RATE=2000 RUN_SECONDS=14 KEYS=10000

# shellcheck source-path=SCRIPTDIR source=bench-lib.sh
source "$SCRIPTS/bench-lib.sh"

usage() {
  cat <<USAGE
usage: scripts/compare-load-tools.sh [options]
  --koltso PATH     the binary (target/release/koltso of this repository)
  --rate N          requests a second ($RATE)
  --seconds N       seconds a run, at least 12 ($RUN_SECONDS)
  --rounds N        rounds of all four runs ($ROUNDS)
  --keys N          different keys ($KEYS)
  --server-core N, --load-core N   (0 and 1)
  --folder PATH     where the data go ($FOLDER)
  --markdown        the table in markdown
USAGE
}

while (($#)); do
  case $1 in
    --markdown) STYLE=markdown ;;
    --help | -h) usage && exit 0 ;;
    --koltso | --folder | --rate | --seconds | --rounds | --keys | --server-core | --load-core)
      (($# > 1)) || fail "$1 needs a value."
      case $1 in
        --koltso) KOLTSO=$2 ;;
        --folder) FOLDER=$2 ;;
        *)
          [[ $2 =~ ^[0-9]{1,8}$ ]] || fail "$1 needs a number, not '$2'."
          case $1 in
            --rate) RATE=$2 ;;
            --seconds) RUN_SECONDS=$2 ;;
            --rounds) ROUNDS=$2 ;;
            --keys) KEYS=$2 ;;
            --server-core) SERVER_CORE=$2 ;;
            --load-core) LOAD_CORE=$2 ;;
          esac
          ;;
      esac
      shift
      ;;
    *) usage >&2 && fail "Unknown option $1." ;;
  esac
  shift
done
((ROUNDS >= 1 && RUN_SECONDS >= 12 && KEYS >= 1 && RATE >= 1)) || fail "--rounds, --seconds, --keys or --rate is too small."
need_tools python3=python3 taskset=util-linux wrk2=wrk2
need_koltso
bench_begin "$FOLDER"

# Runs `koltso bench` as run_wrk2 runs wrk2, and reads its figures from the same layout.
run_bench() { # run_bench get|put
  local log=$WORK/bench.log
  timeout $((RUN_SECONDS + 60)) taskset -c "$LOAD_CORE" "$KOLTSO" bench -t1 -c"$CONNECTIONS" -d"${RUN_SECONDS}s" -R"$RATE" \
    --timeout 10s --warmup 10300ms --keys "$KEYS" "--$1" "http://127.0.0.1:$PORT" >"$log" 2>&1 ||
    { printf 'koltso bench failed: %s\n' "$(tail -n 3 "$log")" >&2 && exit 1; }
}

# Prints a line of the table: operation, tool, requests a second, percentiles in ms, answers not
# 2xx, CPU.
figures() { # figures OPERATION TOOL LOG CPU_SECONDS
  awk -v what="$1" -v tool="$2" -v cpu="$4" -v t="$RUN_SECONDS" '
    function ms(text) {
      if (text ~ /us$/) return text / 1000
      if (text ~ /ms$/) return text + 0
      if (text ~ /m$/) return text * 60000
      return text * 1000
    }
    /HdrHistogram - Recorded Latency/ { on = 1; next }
    on && $1 ~ /%$/ { at[$1 + 0] = ms($2); next }
    on { on = 0 }
    /Non-2xx/ { bad = $NF }
    /Requests\/sec/ { rate = $NF }
    END { printf "%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%d\t%.0f%%\n", what, tool, rate,
      at[50], at[90], at[99], at[99.9], at[100], bad, cpu / t * 100 }' "$3"
}

measure() { # measure TOOL OPERATION: appends to $WORK/table
  local before
  if [[ $1 == wrk2 ]]; then
    run_wrk2 "$2" "$RUN_SECONDS" "$RATE" --keys "$KEYS"
    figures "$2" wrk2 "$WORK/wrk2.log" "$(load_tool_seconds "$WORK/wrk2.log")" >>"$WORK/table"
  else
    before=$(children_seconds)
    run_bench "$2"
    figures "$2" 'koltso bench' "$WORK/bench.log" \
      "$(awk -v a="$before" -v b="$(children_seconds)" 'BEGIN { print b - a }')" >>"$WORK/table"
  fi
}

start_koltso "$WORK/data"
load_keys "$PORT" "$KEYS"
machine_line
printf -- '-t1 -c%d -R%d -d%ds, %d keys, values of 128 bytes; times in ms\n\n' "$CONNECTIONS" "$RATE" "$RUN_SECONDS" "$KEYS"
printf 'what\ttool\trequests/s\tp50\tp90\tp99\tp99.9\tmax\tnot 2xx\tcpu\n' >"$WORK/table"
tools=(wrk2 koltso)
for ((round = 0; round < ROUNDS; round++)); do
  for operation in get put; do
    measure "${tools[round % 2]}" "$operation"
    measure "${tools[(round + 1) % 2]}" "$operation"
  done
done
print_table "$STYLE" <"$WORK/table"
noise_line
