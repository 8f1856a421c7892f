# shellcheck shell=bash
# What compare-peers.sh, bench-goals.sh, bench-cluster.sh, bench-profiling.sh and report.sh share:
# starting servers on given cores, reading their CPU and memory, running wrk and wrk2, printing
# tables. cluster-lib.sh adds clusters.
#
# Owner: the script that sources this file. It sets SERVER_CORE, LOAD_CORE, KOLTSO, SCRIPTS and
# STYLE, and calls bench_begin. Bounds: every wait here has a limit in seconds. This ends only
# processes that it started, by their ids, and removes only the folder that it made.

CLOCK_TICKS=$(getconf CLK_TCK)
# shellcheck disable=SC2034  # the scripts that source this file use it
CONNECTIONS=64
WRK_THREADS=1 # of wrk and wrk2
STARTED=()
MEASURED=() # processes whose CPU together is the server's; where there are none, it is PID
WORK=''

fail() { # fail SENTENCE...: exit code 2, as for everything that is wrong before a measurement begins
  printf '%s\n' "$*" >&2
  exit 2
}

progress() { printf '%s\n' "$*" >&2; }

verdict() { # verdict AWK_CONDITION: yes or no
  awk "BEGIN { exit !($1) }" && printf 'yes' || printf 'no'
}

among() { # among WHAT ALLOWED LIST: all words of LIST are ALLOWED, and there is one
  local word
  [[ $3 =~ [a-z] ]] || fail "$1 needs at least one of: $2."
  for word in $3; do [[ " $2 " == *" $word "* ]] || fail "$1 knows $2, not '$word'."; done
}

# Ends the script with one sentence if tools are missing.
need_tools() { # need_tools COMMAND=PACKAGE...
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair%%=*} (${pair#*=})")
  done
  if ((${#missing[@]})); then
    pair=$(printf ', %s' "${missing[@]}")
    fail "Missing: ${pair:2}; on Debian, apt-get install what is in brackets; wrk2 is to be built from github.com/giltene/wrk2."
  fi
}

need_koltso() {
  [[ -x $KOLTSO ]] || fail "No Koltso binary at $KOLTSO; build it with 'cargo build --release', or say --koltso PATH."
}

bench_begin() { # bench_begin PARENT_FOLDER
  (($(nproc) > 1)) || fail "This needs two cores: one for the server, one for the load."
  taskset -c "$SERVER_CORE,$LOAD_CORE" true 2>/dev/null || fail "Cores $SERVER_CORE and $LOAD_CORE cannot be used here."
  WORK=$(mktemp -d "$1/koltso-bench.XXXXXX" 2>/dev/null) || fail "Cannot make a folder in $1."
  exec {NEVER}<> <(:) # never readable: `read -t` on it is a sleep without a process
  trap bench_end EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

bench_end() {
  local pid
  for pid in "${STARTED[@]}"; do
    stop_server "$pid" TERM 5
  done
  [[ -n $WORK ]] && rm -rf -- "$WORK"
}

pause() { # pause SECONDS
  read -r -t "$1" -u "$NEVER" || true
}

now_us() {
  local now=$EPOCHREALTIME
  printf '%s' "${now/[.,]/}"
}

# Prints the first of COUNT ports in a row that are free and whose replica ports
# (10000 above) are free too; all of them are below the range from which the kernel assigns ports.
free_port() { # free_port COUNT
  python3 - "$1" <<'PYTHON'
import contextlib, random, socket, sys
for _ in range(200):
    port = random.randrange(11000, 22000)
    try:
        with contextlib.ExitStack() as bound:
            for number in range(port, port + int(sys.argv[1])):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", number))
                bound.enter_context(socket.socket()).bind(("127.0.0.1", number + 10000))
        print(port)
        break
    except OSError:
        pass
PYTHON
}

alive() { kill -0 "$1" 2>/dev/null; }

# Sends SIGNAL, waits SECONDS at most, then kills. Takes only ids that are in STARTED.
stop_server() { # stop_server PID SIGNAL SECONDS
  local pid=$1 waited=0
  alive "$pid" && kill -s "$2" "$pid" 2>/dev/null
  while alive "$pid" && ((waited++ < $3 * 100)); do pause 0.01; done
  alive "$pid" && kill -s KILL "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  forget "$pid"
}

forget() { # forget PID: it has ended and was waited for
  local kept=() other
  for other in "${STARTED[@]}"; do [[ $other == "$1" ]] || kept+=("$other"); done
  STARTED=("${kept[@]}")
}

start_pinned() { # start_pinned LOG COMMAND...: sets PID
  local log=$1
  shift
  : >"$log"
  taskset -c "$SERVER_CORE" "$@" >"$log" 2>&1 &
  PID=$!
  STARTED+=("$PID")
}

wait_for_text() { # wait_for_text FILE TEXT SECONDS PID NAME
  local text limit=$(($(now_us) + $3 * 1000000))
  while :; do
    IFS= read -r -d '' text <"$1"
    [[ $text == *"$2"* ]] && return 0
    if ! alive "$4" || (($(now_us) > limit)); then
      printf '%s did not start within %d s. It said: %s\n' "$5" "$3" "$(tail -n 3 "$1")" >&2
      exit 1
    fi
    pause 0.001
  done
}

wait_for_port() { # wait_for_port PORT SECONDS PID NAME LOG
  local limit=$(($(now_us) + $2 * 1000000))
  until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
    if ! alive "$3" || (($(now_us) > limit)); then
      printf '%s did not start within %d s. It said: %s\n' "$4" "$2" "$(tail -n 3 "$5")" >&2
      exit 1
    fi
    pause 0.01
  done
}

# Starts Koltso on a folder. Sets PID, PORT, and START_US, the time until its `ready` line.
start_koltso() { # start_koltso DATA_FOLDER [FLAG...]
  local data=$1 log begun
  shift
  PORT=$(free_port 1)
  log=$WORK/koltso-$PORT.log
  begun=$(now_us)
  start_pinned "$log" "$KOLTSO" serve --listen "127.0.0.1:$PORT" --data "$data" --threads 1 "$@"
  wait_for_text "$log" 'ready http://' 60 "$PID" Koltso
  # shellcheck disable=SC2034
  START_US=$(($(now_us) - begun))
  check_pinned "$PID"
}

# Warns if a thread may leave the core that the comparison is about.
check_pinned() { # check_pinned PID
  local status cores
  for status in /proc/"$1"/task/*/status; do
    cores=$(awk '/^Cpus_allowed_list:/ { print $2 }' "$status" 2>/dev/null)
    [[ -z $cores || $cores == "$SERVER_CORE" ]] ||
      printf 'Warning: thread %s of process %s may run on cores %s, not only %s.\n' \
        "$(awk '/^Name:/ { print $2 }' "$status")" "$1" "$cores" "$SERVER_CORE" >&2
  done
}

# Starts nginx with one worker, which answers everything with VALUE_SIZE bytes. Sets PID to the
# worker's, and PORT.
start_nginx() { # start_nginx VALUE_SIZE: sets also MASTER, which is what stop_server takes
  local folder=$WORK/nginx body
  mkdir -p "$folder"
  PORT=$(free_port 1)
  body=$(printf '%*s' "$1" '')
  cat >"$folder/nginx.conf" <<CONF
$( ((EUID == 0)) && echo 'user root;')
worker_processes 1;
daemon off;
pid $folder/nginx.pid;
error_log stderr error;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 3600;
  client_body_temp_path $folder; proxy_temp_path $folder; fastcgi_temp_path $folder; uwsgi_temp_path $folder; scgi_temp_path $folder;
  server {
    listen 127.0.0.1:$PORT;
    location / { return 200 "${body// /v}"; }
  }
}
CONF
  start_pinned "$folder/log" nginx -p "$folder" -c "$folder/nginx.conf"
  MASTER=$PID
  wait_for_port "$PORT" 10 "$MASTER" nginx "$folder/log"
  read -r PID _ <"/proc/$MASTER/task/$MASTER/children"
}

# Starts Redis, which syncs its log every second and does not rewrite it during the run. Sets PID
# and PORT.
start_redis() {
  local folder=$WORK/redis
  mkdir -p "$folder"
  PORT=$(free_port 1)
  start_pinned "$folder/log" redis-server --port "$PORT" --bind 127.0.0.1 --dir "$folder" --save '' \
    --appendonly yes --appendfsync everysec --auto-aof-rewrite-percentage 0 --daemonize no
  wait_for_port "$PORT" 10 "$PID" Redis "$folder/log"
}

# Takes a capture through the API, in the background. capture_end waits for it and sets CODE, TOOK
# (seconds from the request to the last byte) and BYTES; the answer is in $WORK/capture. Any status
# other than 200 ends the script.
capture_begin() { # capture_begin SECONDS PATH?QUERY
  timeout $(($1 + 90)) curl -s -m $(($1 + 80)) -o "$WORK/capture" -w '%{http_code} %{time_total} %{size_download}\n' \
    "http://127.0.0.1:$PORT/debug/pprof/$2&seconds=$1" >"$WORK/capture.said" &
  CAPTURE_PID=$!
  STARTED+=("$CAPTURE_PID")
}

capture_end() {
  wait "$CAPTURE_PID"
  forget "$CAPTURE_PID"
  # shellcheck disable=SC2034
  read -r CODE TOOK BYTES <"$WORK/capture.said"
  [[ ${CODE:-000} == 200 ]] && return
  printf 'A capture was answered %s: %s\n' "${CODE:-not at all}" "$(head -n 1 "$WORK/capture" 2>/dev/null)" >&2
  exit 1
}

capture() { capture_begin "$@" && capture_end; }

# Sums the CPU of all threads of some processes, in clock ticks: sets USER_TICKS and SYS_TICKS. A
# process that has ended counts as in $WORK/stat.PID, a copy of its /proc/PID/stat, if there is one.
read_cpu() { # read_cpu PID...
  local pid stat fields
  USER_TICKS=0 SYS_TICKS=0
  for pid in "$@"; do
    { stat=$(<"/proc/$pid/stat") || stat=$(<"$WORK/stat.$pid"); } 2>/dev/null || continue
    read -r -a fields <<<"${stat##*) }" # the fields after the name, from the third on
    USER_TICKS=$((USER_TICKS + fields[11]))
    SYS_TICKS=$((SYS_TICKS + fields[12]))
  done
}

process_ticks() { # of MEASURED together
  read_cpu "${MEASURED[@]}"
  printf '%s' $((USER_TICKS + SYS_TICKS))
}

thread_ns() { # thread_ns PATTERN: CPU so far of the threads of PID with such names
  local name ns sum=0
  for name in /proc/"$PID"/task/*/comm; do
    [[ $(<"$name") =~ $1 ]] && read -r ns _ <"${name%comm}schedstat" && ((sum += ns))
  done 2>/dev/null
  printf '%s' "$sum"
}

# Waits until MEASURED have nothing left to do, such as sealing what was put, so that no slice does
# work of the slice before it.
await_idle() {
  local before after waited idle=0
  before=$(process_ticks)
  for ((waited = 0; waited < 60 && idle < 2; waited++)); do
    pause 0.5
    after=$(process_ticks)
    if ((after - before <= 1)); then ((idle++)); else idle=0; fi
    before=$after
  done
  ((idle == 2)) || progress 'Not a fair figure: 30 s after its load the server was still at work.'
}

# Measures what disturbs a measurement: CPU used by neither the server (MEASURED, or PID) nor the
# load tool, and CPU that the hypervisor took. noise_end sets OTHERS and STOLEN, in per cent of one
# core, and appends both to $WORK/noise.
noise_begin() {
  read_machine
  read_cpu "${MEASURED[@]:-$PID}"
  NOISE_FROM="$BUSY_TICKS $STOLEN_TICKS $((USER_TICKS + SYS_TICKS)) $EPOCHREALTIME"
}

noise_end() { # noise_end LOAD_TOOL_SECONDS
  read_machine
  read_cpu "${MEASURED[@]:-$PID}"
  # shellcheck disable=SC2034
  read -r OTHERS STOLEN < <(awk -v hz="$CLOCK_TICKS" -v l="$1" -v from="$NOISE_FROM" \
    -v to="$BUSY_TICKS $STOLEN_TICKS $((USER_TICKS + SYS_TICKS)) $EPOCHREALTIME" 'BEGIN {
      split(from, a); split(to, b); t = b[4] - a[4]
      others = ((b[1] - a[1] - b[3] + a[3]) / hz - l) / t * 100
      printf "%.0f %.0f\n", (others > 0 ? others : 0), (b[2] - a[2]) / hz / t * 100 }')
  printf '%s %s\n' "$OTHERS" "$STOLEN" >>"$WORK/noise"
}

read_machine() { # sets BUSY_TICKS (soft interrupts included) and STOLEN_TICKS, all cores together
  local ticks # cpu user nice system idle iowait irq softirq steal
  read -r -a ticks </proc/stat
  BUSY_TICKS=$((ticks[1] + ticks[2] + ticks[3] + ticks[6] + ticks[7]))
  STOLEN_TICKS=${ticks[8]}
}

# Prints one line on the worst noise of all measurements.
noise_line() {
  [[ -s $WORK/noise ]] && awk '{ if ($1 > o) o = $1; if ($2 > s) s = $2 }
    END { printf "In the noisiest measurement other processes used %d %% of a core and the hypervisor took %d %% of one.\n", o, s }' \
    "$WORK/noise"
}

anonymous_kb() { awk '/^RssAnon:/ { print $2 }' "/proc/$1/status"; }
file_kb() { awk '/^RssFile:/ { print $2 }' "/proc/$1/status"; }
disk_bytes() { du -s --block-size=1 "$1" | cut -f 1; }

# Puts the keys 0 to COUNT - 1 once each; a failure ends the script. More flags of load.py may
# follow.
load_keys() { # load_keys PORT COUNT [FLAG...]
  local port=$1 count=$2
  shift 2
  timeout 300 taskset -c "$LOAD_CORE" python3 "$SCRIPTS/load.py" "http://127.0.0.1:$port" --count "$count" "$@" \
    >"$WORK/load.log" 2>&1 || {
    printf 'Loading %d keys failed: %s\n' "$count" "$(tail -n 2 "$WORK/load.log")" >&2
    exit 1
  }
}

each_second() { awk -v n="$REQUESTS" -v t="$SECONDS_RUN" 'BEGIN { printf "%.0f", n / t }'; }


ticks_to() { awk -v t="$1" -v hz="$CLOCK_TICKS" -v unit="$2" 'BEGIN { printf "%.3f", t / hz * unit }'; } # TICKS UNITS_A_SECOND

# Runs wrk once against the server at PORT. Sets REQUESTS, SECONDS_RUN, NOT_2XX (socket errors
# included), USER_US and SYS_US (a request), SERVER_BUSY and LOAD_BUSY (per cent of a core).
# WRK_ARGUMENTS follow the script.
run_wrk() { # run_wrk SCRIPT SECONDS [WRK_ARGUMENT...]
  wrk_begin "$@"
  wrk_end
}

# The two halves of run_wrk, for callers that do something in between.
wrk_begin() {
  local script=$1 seconds=$2
  shift 2
  noise_begin
  LOAD_FROM="$USER_TICKS $SYS_TICKS"
  start_load "$seconds" wrk -t"$WRK_THREADS" -c"$CONNECTIONS" -d"${seconds}s" --timeout 10s \
    -s "$SCRIPTS/$script.lua" "http://127.0.0.1:$PORT" -- "$@"
}

wrk_end() {
  local user sys
  read -r user sys <<<"$LOAD_FROM"
  end_load wrk
  cpu_figures $((USER_TICKS - user)) $((SYS_TICKS - sys)) "$(load_tool_seconds "$LOAD_LOG")"
}

start_load() { # start_load SECONDS COMMAND...: sets LOAD_PID and LOAD_LOG
  local limit=$(($1 + 60))
  shift
  LOAD_LOG=$WORK/$1.log
  timeout "$limit" taskset -c "$LOAD_CORE" "$@" >"$LOAD_LOG" 2>&1 &
  LOAD_PID=$!
  STARTED+=("$LOAD_PID")
}

end_load() { # end_load NAME: waits for it, `timeout` being the limit, and sets REQUESTS, SECONDS_RUN and NOT_2XX
  local line
  wait "$LOAD_PID"
  forget "$LOAD_PID"
  noise_end "$(load_tool_seconds "$LOAD_LOG" total)"
  line=$(grep '^answers:' "$LOAD_LOG") || {
    printf '%s failed: %s\n' "$1" "$(tail -n 3 "$LOAD_LOG")" >&2
    exit 1
  }
  # shellcheck disable=SC2034
  read -r REQUESTS SECONDS_RUN NOT_2XX < <(awk '{ gsub(",", ""); print $2, $4, $6 + $11 + $13 + $15 + $17 }' <<<"$line")
}

# CPU seconds that wrk or wrk2 used after its requests were formatted, or in all if that is not
# known; 0 if it printed nothing.
load_tool_seconds() { # load_tool_seconds LOG [total]
  awk -v total="${2:+1}" '/^load tool:/ { seconds = total ? $3 + $8 : $3 } END { print seconds + 0 }' "$1"
}

cpu_figures() { # cpu_figures USER_TICKS SYS_TICKS LOAD_SECONDS
  # shellcheck disable=SC2034
  read -r USER_US SYS_US SERVER_BUSY LOAD_BUSY < <(awk -v u="$1" -v s="$2" -v hz="$CLOCK_TICKS" -v n="$REQUESTS" \
    -v t="$SECONDS_RUN" -v l="$3" 'BEGIN {
      if (n == 0) n = 1
      printf "%.3f %.3f %.0f %.0f\n", u / hz / n * 1e6, s / hz / n * 1e6, (u + s) / hz / t * 100, l / t * 100 }')
}

# Runs wrk2 at a constant rate. Sets P50, P99, P999 and MAX in milliseconds, REQUESTS, SECONDS_RUN,
# NOT_2XX. wrk2 discards what it records in its first 10.3 s (it calibrates), so SECONDS must be
# well above that.
run_wrk2() { # run_wrk2 SCRIPT SECONDS RATE [SCRIPT_ARGUMENT...]
  wrk2_begin "$@"
  wrk2_end
}

wrk2_begin() {
  local script=$1 seconds=$2 rate=$3
  shift 3
  noise_begin
  LOAD_FROM="$USER_TICKS $SYS_TICKS"
  start_load "$seconds" wrk2 -t"$WRK_THREADS" -c"$CONNECTIONS" -d"${seconds}s" -R"$rate" -L --timeout 10s \
    -s "$SCRIPTS/$script.lua" "http://127.0.0.1:$PORT" -- "$@"
}

# Also sets the figures of CPU that run_wrk sets.
wrk2_end() {
  local user sys
  read -r user sys <<<"$LOAD_FROM"
  end_load wrk2
  cpu_figures $((USER_TICKS - user)) $((SYS_TICKS - sys)) "$(load_tool_seconds "$LOAD_LOG")"
  # shellcheck disable=SC2034
  read -r P50 P99 P999 MAX < <(awk '
    function ms(text) {
      if (text ~ /us$/) return text / 1000
      if (text ~ /ms$/) return text + 0
      if (text ~ /m$/) return text * 60000
      return text * 1000
    }
    /HdrHistogram - Recorded Latency/ { on = 1 }
    /Detailed Percentile/ { on = 0 }
    on && $1 ~ /%$/ { at[$1 + 0] = ms($2) }
    END { printf "%.2f %.2f %.2f %.2f\n", at[50], at[99], at[99.9], at[100] }' "$LOAD_LOG")
}

# Runs `koltso bench` as wrk2_begin and wrk2_end run wrk2, without the server's CPU. It records from
# 2 s on.
koltso_begin() { # koltso_begin METHOD SECONDS RATE --keys N --size BYTES [--ack A --from F]
  local method=$1 seconds=$2 rate=$3 arguments=(--keys "$5" --size "$7")
  [[ ${8:-} != --ack ]] || arguments+=(--query "ack=$9&from=${11}")
  noise_begin
  LOAD_CPU=$(children_ticks)
  ln -sf "$(realpath "$KOLTSO")" "$WORK/bench"
  LOAD_LOG=$WORK/bench.json
  timeout $((seconds + 60)) taskset -c "$LOAD_CORE" "$WORK/bench" bench -t"$WRK_THREADS" -c"$CONNECTIONS" -d"${seconds}s" -R"$rate" --warmup 2s \
    --timeout 10s --json "--$method" "${arguments[@]}" "http://127.0.0.1:$PORT" >"$LOAD_LOG" 2>"$WORK/bench.said" &
  LOAD_PID=$!
  STARTED+=("$LOAD_PID")
}

koltso_end() {
  wait "$LOAD_PID"
  forget "$LOAD_PID"
  noise_end "$(ticks_to $(($(children_ticks) - LOAD_CPU)) 1)"
  # shellcheck disable=SC2034
  read -r REQUESTS SECONDS_RUN NOT_2XX P50 P99 P999 MAX < <(jq -r '[.requests, .seconds, .non_2xx_3xx + ([.errors[]] | add),
    (.latency_us | (.p50, .p99, ."p99.9", .max) / 1000)] | map(tostring) | join(" ")' "$LOAD_LOG" 2>/dev/null)
  [[ -n ${MAX:-} ]] || {
    printf 'koltso bench failed: %s\n' "$(tail -n 3 "$WORK/bench.said")" >&2
    exit 1
  }
}

children_ticks() { # of all programs that this shell has waited for
  local fields
  read -r -a fields </proc/$$/stat # its name has no blank
  printf '%s' $((fields[15] + fields[16]))
}

children_seconds() { ticks_to "$(children_ticks)" 1; }

# Combines the lines of several rounds, tab-separated, into one line for each first field, in the
# order in which those were first seen. MODES has a letter for each other field: m median, x
# maximum, s sum, t the text of the last round.
over_rounds() { # over_rounds MODES
  awk -F '\t' -v OFS='\t' -v modes="$1" '
    function median(key, column,   i, j, n, list, swap) {
      n = count[key]
      for (i = 1; i <= n; i++) list[i] = value[key, column, i] + 0
      for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j - 1] > list[j]; j--) { swap = list[j]; list[j] = list[j - 1]; list[j - 1] = swap }
      return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    { if (!($1 in count)) order[++keys] = $1
      n = ++count[$1]
      for (i = 2; i <= NF; i++) {
        value[$1, i, n] = $i
        sum[$1, i] += $i
        if (n == 1 || $i + 0 > most[$1, i]) most[$1, i] = $i + 0
      } }
    END {
      for (k = 1; k <= keys; k++) {
        line = key = order[k]
        for (i = 2; i <= length(modes) + 1; i++) {
          mode = substr(modes, i - 1, 1)
          line = line OFS (mode == "m" ? median(key, i) : mode == "x" ? most[key, i] : mode == "s" ? sum[key, i] : value[key, i, count[key]])
        }
        print line
      }
    }'
}

# Prints tab-separated lines, of which the first is the head, as a table: plain (aligned) or
# markdown.
print_table() { # print_table plain|markdown
  awk -F '\t' -v style="$1" '
    { rows = NR; if (NF > columns) columns = NF
      for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } }
    END {
      for (r = 1; r <= rows; r++) {
        line = style == "markdown" ? "|" : ""
        for (i = 1; i <= columns; i++) {
          if (style == "markdown") line = line " " cell[r, i] " |"
          else line = line sprintf(i == 1 ? "%-" width[i] "s" : "  %" width[i] "s", cell[r, i])
        }
        print line
        if (r == 1) {
          line = style == "markdown" ? "|---|" : ""
          for (i = 2; i <= columns && style == "markdown"; i++) line = line "---:|"
          if (style == "markdown") print line
        }
      }
    }'
}

report() { # report TITLE: prints $WORK/table
  printf '\n%s\n\n' "$1"
  print_table "$STYLE" <"$WORK/table"
}

# Prints a line about the machine, for the head of a report.
machine_line() {
  printf '%s, %d cores, Linux %s, load average %s at the start; server on core %s, load on core %s\n' \
    "$(awk -F ': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)" "$(nproc)" "$(uname -r)" \
    "$(cut -d ' ' -f 1 /proc/loadavg)" "$SERVER_CORE" "$LOAD_CORE"
}
