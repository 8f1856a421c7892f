#!/usr/bin/env bash
# Koltso beside nginx and Redis: one session, the same server core, the same load core, several
# rounds in turn. Prints requests/s and CPU a request (user and system apart, all threads of the
# server process) as medians over the rounds, each as a ratio to nginx and to Redis, and which of
# docs/PERFORMANCE.md's goals these reach.
#
# What is compared with what:
#   nginx   one worker, no access log, `return 200` with a constant body of --value-size bytes to
#           every request, PUT too, under the very wrk scripts that Koltso gets (same requests, same
#           key order);
#   Redis   SET and GET over the same number of keys, log synced every second (AOF everysec), by
#           redis-benchmark;
#   Koltso  --threads 1, all threads on the server core, a fresh folder every round, filled with all
#           keys before the GETs.
# One server runs at a time. The order of the three rotates by one every round, so that drift hits
# all of them. "busy" is the share of its core that the server or the load tool used: where
# "load busy" is near 100 and "server busy" is not, the load tool was the limit and the server could
# do more. Without pipelining that is often so, for each of the three, as both ends pay for the
# kernel's TCP path: then "CPU to nginx" and "CPU to Redis" (CPU a request, less is better) tell the
# servers apart and the ratios of requests/s no longer do.
#
# It takes about rounds x 14 x (seconds + 1) seconds: four minutes by default.
set -u -o pipefail

SCRIPTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
KOLTSO=$SCRIPTS/../target/release/koltso
SERVER_CORE=0 LOAD_CORE=1
ROUNDS=3 SECONDS_EACH=5 VALUE_SIZE=128 KEYS=100000 SYNC=1s PIPELINE=16
STYLE=plain FOLDER=${TMPDIR:-/tmp} SERVERS='nginx koltso redis'

# shellcheck source-path=SCRIPTDIR source=bench-lib.sh
source "$SCRIPTS/bench-lib.sh"

usage() {
  cat <<USAGE
usage: scripts/compare-peers.sh [options]
  --koltso PATH     the binary (target/release/koltso of this repository)
  --rounds N        rounds (3)
  --seconds N       seconds a measurement (5)
  --connections N   connections (64)
  --value-size N    bytes a value (128)
  --keys N          key space (100000)
  --sync MODE       Koltso's --sync for the comparison with the peers (1s)
  --only NAMES      which servers, of "nginx koltso redis" (all three)
  --server-core N, --load-core N   (0 and 1)
  --folder PATH     where the servers' data go, on a real disk ($FOLDER)
  --markdown        tables in markdown
USAGE
}

while (($#)); do
  case $1 in
    --markdown) STYLE=markdown ;;
    --help | -h) usage && exit 0 ;;
    --koltso | --rounds | --seconds | --connections | --value-size | --keys | --sync | --only | --server-core | --load-core | --folder)
      (($# > 1)) || fail "$1 needs a value."
      case $1 in
        --koltso) KOLTSO=$2 ;;
        --sync) SYNC=$2 ;;
        --only) SERVERS=${2//,/ } ;;
        --folder) FOLDER=$2 ;;
        *)
          [[ $2 =~ ^[0-9]{1,8}$ ]] || fail "$1 needs a number, not '$2'."
          case $1 in
            --rounds) ROUNDS=$2 ;;
            --seconds) SECONDS_EACH=$2 ;;
            --connections) CONNECTIONS=$2 ;;
            --value-size) VALUE_SIZE=$2 ;;
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
((ROUNDS >= 1 && SECONDS_EACH >= 1 && CONNECTIONS >= 1 && KEYS >= 1)) || fail "--rounds, --seconds, --connections and --keys must be at least 1."
for server in $SERVERS; do
  [[ $server =~ ^(nginx|koltso|redis)$ ]] || fail "--only knows nginx, koltso and redis, not '$server'."
done

need_tools wrk=wrk nginx=nginx-light redis-server=redis-server redis-benchmark=redis-tools python3=python3 taskset=util-linux
[[ $SERVERS != *koltso* ]] || need_koltso
bench_begin "$FOLDER"
RESULTS=$WORK/results # round, server, case, requests/s, user us, system us, server busy, load busy, not 2xx
: >"$RESULTS"

record() { # record ROUND SERVER CASE: what run_wrk or run_redis left
  awk -v OFS='\t' -v round="$1" -v server="$2" -v what="$3" -v n="$REQUESTS" -v t="$SECONDS_RUN" -v u="$USER_US" -v s="$SYS_US" \
    -v sb="$SERVER_BUSY" -v lb="$LOAD_BUSY" -v bad="$NOT_2XX" \
    'BEGIN { print round, server, what, n / t, u, s, sb, lb, bad }' >>"$RESULTS"
  printf 'round %s, %s %s: %.0f requests/s\n' "$1" "$2" "$3" \
    "$(awk -v n="$REQUESTS" -v t="$SECONDS_RUN" 'BEGIN { print n / t }')" >&2
}

run_http_cases() { # run_http_cases ROUND SERVER: the GETs come first, so that they find the keys as they were filled in
  local arguments=(--keys "$KEYS" --size "$VALUE_SIZE")
  run_wrk get "$SECONDS_EACH" "${arguments[@]}" && record "$1" "$2" GET
  run_wrk get "$SECONDS_EACH" "${arguments[@]}" --pipeline "$PIPELINE" && record "$1" "$2" "GET x$PIPELINE"
  run_wrk put "$SECONDS_EACH" "${arguments[@]}" && record "$1" "$2" PUT
  run_wrk put "$SECONDS_EACH" "${arguments[@]}" --pipeline "$PIPELINE" && record "$1" "$2" "PUT x$PIPELINE"
}

round_nginx() {
  start_nginx "$VALUE_SIZE"
  run_http_cases "$1" nginx
  stop_server "$MASTER" TERM 5
}

round_koltso() {
  local mode
  start_koltso "$WORK/data" --sync "$SYNC"
  load_keys "$PORT" "$KEYS" --value-size "$VALUE_SIZE"
  run_http_cases "$1" koltso
  stop_server "$PID" TERM 15
  rm -rf -- "$WORK/data"
  for mode in os always; do
    start_koltso "$WORK/data" --sync "$mode"
    run_wrk put "$SECONDS_EACH" --keys "$KEYS" --size "$VALUE_SIZE" && record "$1" koltso "PUT --sync $mode"
    stop_server "$PID" TERM 15
    rm -rf -- "$WORK/data"
  done
}

# redis-benchmark takes a number of requests, so a short run first finds out how many fill the time.
declare -A REDIS_RATE=()
run_redis() { # run_redis get|set PIPELINE
  local key=$1x$2 user sys log=$WORK/redis-benchmark.log TIMEFORMAT='%U %S' load
  [[ -n ${REDIS_RATE[$key]:-} ]] || {
    redis_benchmark "$1" "$2" 100000
    REDIS_RATE[$key]=$RATE
  }
  REQUESTS=$((REDIS_RATE[$key] * SECONDS_EACH))
  noise_begin
  user=$USER_TICKS sys=$SYS_TICKS
  { time redis_benchmark "$1" "$2" "$REQUESTS"; } 2>"$WORK/time"
  load=$(awk 'END { print $1 + $2 }' "$WORK/time")
  noise_end "$load"
  SECONDS_RUN=$(awk -v n="$REQUESTS" -v r="$RATE" 'BEGIN { print n / r }')
  NOT_2XX=$(grep -c -i '^error' "$log")
  cpu_figures $((USER_TICKS - user)) $((SYS_TICKS - sys)) "$load"
}

redis_benchmark() { # redis_benchmark get|set PIPELINE REQUESTS: sets RATE
  timeout $((SECONDS_EACH * 5 + 60)) taskset -c "$LOAD_CORE" redis-benchmark -h 127.0.0.1 -p "$PORT" -c "$CONNECTIONS" \
    -n "$3" -r "$KEYS" -d "$VALUE_SIZE" -P "$2" -t "$1" --csv >"$WORK/redis-benchmark.log" 2>&1
  RATE=$(awk -F '","' -v test="${1^^}" '$1 == "\"" test { printf "%d", $2 }' "$WORK/redis-benchmark.log")
  ((${RATE:-0} > 0)) || {
    printf 'redis-benchmark failed: %s\n' "$(tail -n 3 "$WORK/redis-benchmark.log")" >&2
    exit 1
  }
}

round_redis() {
  start_redis
  # Ten times as many random SETs as there are keys leave out one key in 20 000.
  redis_benchmark set "$PIPELINE" $((KEYS * 10))
  run_redis get 1 && record "$1" redis GET
  run_redis get "$PIPELINE" && record "$1" redis "GET x$PIPELINE"
  run_redis set 1 && record "$1" redis PUT
  run_redis set "$PIPELINE" && record "$1" redis "PUT x$PIPELINE"
  stop_server "$PID" TERM 15
  rm -rf -- "$WORK/redis"
}

ORDER=$SERVERS
for ((round = 1; round <= ROUNDS; round++)); do
  for server in $ORDER; do "round_$server" "$round"; done
  ORDER="${ORDER#* } ${ORDER%% *}"
  [[ $SERVERS == *' '* ]] || ORDER=$SERVERS
done

# Prints the medians, in the order in which the cases were first seen, one line each: server, case,
# requests/s, least, most, user us, system us, server busy, load busy, not 2xx
awk -F '\t' -v OFS='\t' '
  function median(key, column,   i, j, n, list, swap) {
    n = count[key]
    for (i = 1; i <= n; i++) list[i] = value[key, column, i]
    for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j - 1] > list[j]; j--) { swap = list[j]; list[j] = list[j - 1]; list[j - 1] = swap }
    least = list[1]; most = list[n]
    return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
  }
  { key = $2 OFS $3
    if (!(key in count)) order[++keys] = key
    n = ++count[key]
    for (i = 4; i <= 9; i++) value[key, i, n] = $i + 0
    bad[key] += $9 }
  END {
    for (k = 1; k <= keys; k++) {
      key = order[k]
      rate = median(key, 4); low = least; high = most
      print key, rate, low, high, median(key, 5), median(key, 6), median(key, 7), median(key, 8), bad[key]
    }
  }' "$RESULTS" | sort -s -t $'\t' -k 2,2 >"$WORK/medians"

VERSIONS=$({
  [[ $SERVERS != *koltso* ]] || "$KOLTSO" --version 2>/dev/null || echo 'koltso, version unknown'
  nginx -v 2>&1
  redis-server --version | cut -d ' ' -f 1-3
  wrk -v 2>&1 | head -n 1 | cut -d ' ' -f 1-2
} | paste -s -d ';' | sed 's/;/; /g')

echo
machine_line
printf '%s\n' "$VERSIONS"
printf '%d connections, values of %d bytes, %d keys, Koltso --sync %s, medians of %d rounds of %d s; x%d is that many requests pipelined\n\n' \
  "$CONNECTIONS" "$VALUE_SIZE" "$KEYS" "$SYNC" "$ROUNDS" "$SECONDS_EACH" "$PIPELINE"

{
  printf 'what\tserver\trequests/s\tleast\tmost\tto nginx\tto Redis\tuser us\tsystem us\tCPU to nginx\tCPU to Redis\tserver busy\tload busy\tnot 2xx\n'
  awk -F '\t' -v OFS='\t' '
    { line[NR] = $0; rate[$1, $2] = $3; cpu[$1, $2] = $6 + $7 }
    function ratio(a, b) { return b > 0 ? sprintf("%.2f", a / b) : "" }
    END {
      for (i = 1; i <= NR; i++) {
        split(line[i], f, "\t")
        what = f[2]; sub(/ --sync.*/, "", what)
        print f[2], f[1], sprintf("%.0f", f[3]), sprintf("%.0f", f[4]), sprintf("%.0f", f[5]), \
          ratio(f[3], rate["nginx", what]), ratio(f[3], rate["redis", what]), sprintf("%.2f", f[6]), sprintf("%.2f", f[7]), \
          ratio(f[6] + f[7], cpu["nginx", what]), ratio(f[6] + f[7], cpu["redis", what]), \
          sprintf("%.0f %%", f[8]), sprintf("%.0f %%", f[9]), f[10]
      }
    }' "$WORK/medians"
} | print_table "$STYLE"

if [[ $SERVERS == *koltso* ]]; then
  echo
  {
    printf 'goal\twanted\tmeasured\treached\n'
    awk -F '\t' -v OFS='\t' -v p="$PIPELINE" '
      { rate[$1, $2] = $3; user[$1, $2] = $6 }
      function at_least(text, value, goal, format) {
        print text, ">= " sprintf(format, goal), sprintf(format, value), (value >= goal ? "yes" : "no")
      }
      function over(text, a, b, goal) { if (b > 0) at_least(text, a / b, goal, "%.2f") }
      END {
        over("GET requests/s to nginx", rate["koltso", "GET"], rate["nginx", "GET"], 1.0)
        over("PUT requests/s to nginx", rate["koltso", "PUT"], rate["nginx", "PUT"], 0.9)
        print "user us a GET", "<= 1.50", sprintf("%.2f", user["koltso", "GET"]), (user["koltso", "GET"] <= 1.5 ? "yes" : "no")
        print "user us a PUT", "<= 2.00", sprintf("%.2f", user["koltso", "PUT"]), (user["koltso", "PUT"] <= 2.0 ? "yes" : "no")
        over("GET requests/s to Redis", rate["koltso", "GET"], rate["redis", "GET"], 1.4)
        over("PUT requests/s to Redis", rate["koltso", "PUT"], rate["redis", "PUT"], 1.4)
        at_least("GET x" p " requests/s", rate["koltso", "GET x" p], 500000, "%.0f")
        at_least("PUT x" p " requests/s", rate["koltso", "PUT x" p], 350000, "%.0f")
        over("PUT --sync always to --sync os", rate["koltso", "PUT --sync always"], rate["koltso", "PUT --sync os"], 0.5)
      }' "$WORK/medians"
  } | print_table "$STYLE"
fi
echo
noise_line

awk -F '\t' '$10 > 0 { printf "Not a fair figure: %s of %s had %d answers that were not 2xx, or socket errors.\n", $2, $1, $10; bad = 1 }
  END { exit bad }' "$WORK/medians" || exit 1
