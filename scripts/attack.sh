#!/usr/bin/env bash
# What a client that behaves well notices of strangers who do all they can.
#
# Two nodes; the first one has a core to itself and is attacked, the second one, the client
# (`koltso bench` at a constant rate, 80 % GET and 20 % PUT with ack=1&from=2) and the attackers
# (`crates/testkit/examples/attack.rs`) share another. The attack: connections that say nothing,
# requests that dribble in at a byte a second, clients that ask for 1 MiB again and again and read
# nothing, a flood of strangers at the replica port, and a log that is stuck. Whatever is cut off
# comes back. Rounds alternate: alone, attacked.
#
# Attackers run at the lowest priority and the client at a high one where that may be set: what is
# measured is the node, not who gets the client's core. Every wait has a limit; this ends only
# processes that it started.
set -u -o pipefail

SCRIPTS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
KOLTSO=$SCRIPTS/../target/release/koltso ATTACK=$SCRIPTS/../target/release/examples/attack
SERVER_CORE=0 LOAD_CORE=1 STYLE=plain FOLDER=${TMPDIR:-/tmp}
REALTIME=0 ROUNDS=5 SECONDS_EACH=12 RATE=2000 IDLE=9000 DRIBBLING=1000 UNREAD=50 STRANGERS=16700 CLIENTS=16
GROWTH_MAX_KB=153600 # what connections, their buffers and what is read for them may take in all

# shellcheck source-path=SCRIPTDIR source=bench-lib.sh
source "$SCRIPTS/bench-lib.sh"

usage() {
  cat <<USAGE
usage: scripts/attack.sh [options]   (about $((ROUNDS * 2 * (SECONDS_EACH + 12) / 60)) minutes)
  --koltso PATH, --attack PATH   the binaries (of target/release: cargo build --release, and
                                 cargo build --release -p koltso-testkit --example attack)
  --rounds N, --seconds N        rounds of two runs each, and the length of a run (5, 12)
  --rate N                       requests/s of the client (2000)
  --idle N, --dribbling N, --unread N, --strangers N   the attack; strangers a second (9000, 1000, 50, 16700)
  --server-core N, --load-core N (0 and 1)
  --folder PATH                  where the data go ($FOLDER)
  --realtime                     nodes and client before everything else that runs here, for a machine that others use
  --markdown                     the table in markdown
USAGE
}

declare -A TEXTS=([--koltso]=KOLTSO [--attack]=ATTACK [--folder]=FOLDER)
declare -A NUMBERS=([--rounds]=ROUNDS [--seconds]=SECONDS_EACH [--rate]=RATE [--idle]=IDLE [--dribbling]=DRIBBLING
  [--unread]=UNREAD [--strangers]=STRANGERS [--server-core]=SERVER_CORE [--load-core]=LOAD_CORE)
while (($#)); do
  case $1 in
    --markdown) STYLE=markdown ;;
    --realtime) REALTIME=1 ;;
    --help | -h) usage && exit 0 ;;
    *)
      variable=${TEXTS[$1]:-${NUMBERS[$1]:-}}
      [[ -n $variable && $# -gt 1 ]] || { usage >&2 && fail "Unknown option $1, or no value for it."; }
      [[ -z ${NUMBERS[$1]:-} || $2 =~ ^[0-9]+$ ]] || fail "$1 takes a number, not '$2'."
      printf -v "$variable" '%s' "$2"
      shift
      ;;
  esac
  shift
done
((ROUNDS > 0 && SECONDS_EACH >= 5)) || fail "A run has 5 seconds at least, and there is at least one round."
need_tools python3=python3 taskset=util-linux
need_koltso
[[ -x $ATTACK ]] || fail "No $ATTACK; build it with 'cargo build --release -p koltso-testkit --example attack'."
# The raise is the node's own: this is what there is to raise to.
(($(ulimit -Hn) >= IDLE + DRIBBLING + UNREAD + 1000)) || fail "Too few files may be open (ulimit -Hn) for $IDLE idle connections."
bench_begin "$FOLDER"

PRIORITY=() ATTACK_PRIORITY=(nice -n 19)
nice -n -10 true 2>/dev/null && PRIORITY=(nice -n -10)
if ((REALTIME)); then
  chrt -f 1 true 2>/dev/null || fail "--realtime needs the right to set real-time priorities."
  PRIORITY=(chrt -f 1) ATTACK_PRIORITY=(nice -n -10)
fi

start_nodes() { # sets A and B, their process ids, and PORT, that of A
  PORT=$(free_port 2)
  local cluster="http://127.0.0.1:$PORT,http://127.0.0.1:$((PORT + 1))" flags
  flags=(--threads 1 --no-pin --cluster "$cluster" --max-connections $((IDLE + DRIBBLING + UNREAD + 1000)))
  : >"$WORK/a.log"
  # Its log is read until it is ready, and never after that.
  # shellcheck disable=SC2016  # the other shell expands it
  taskset -c "$SERVER_CORE" "${PRIORITY[@]}" bash -c \
    'exec "$@" 2> >(sed -u "/ready http/q" >"$0"; exec tail -f /dev/null --pid=$$ 2>&-)' "$WORK/a.log" \
    "$KOLTSO" serve --listen "127.0.0.1:$PORT" --data "$WORK/a" "${flags[@]}" &
  A=$!
  STARTED+=("$A")
  taskset -c "$LOAD_CORE" "${PRIORITY[@]}" "$KOLTSO" serve --listen "127.0.0.1:$((PORT + 1))" --data "$WORK/b" "${flags[@]}" \
    2>"$WORK/b.log" &
  B=$!
  STARTED+=("$B")
  wait_for_text "$WORK/a.log" 'ready http://' 60 "$A" 'The first node'
  wait_for_text "$WORK/b.log" 'ready http://' 60 "$B" 'The second node'
}

run_client() { # run_client FILE SECONDS
  timeout $(($2 + 30)) taskset -c "$LOAD_CORE" "${PRIORITY[@]}" "$KOLTSO" bench -t1 "-c$CLIENTS" "-R$RATE" "-d${2}s" --warmup 2s \
    --mix 80:20 --keys 1000 --query 'ack=1&from=2' --json "http://127.0.0.1:$PORT" >"$1" 2>"$WORK/bench.log" ||
    { printf 'The client failed: %s\n' "$(tail -n 2 "$WORK/bench.log")" >&2 && exit 1; }
}

server_ticks() {
  read_cpu "$A"
  printf '%s' $((USER_TICKS + SYS_TICKS))
}

start_nodes
python3 - "$PORT" <<'PYTHON' || exit 1
import http.client, sys
client = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
for name, value in [("large", b"v" * (1 << 20))]:
    client.request("PUT", "/v0/entity?id=%s&ack=2&from=2" % name, value)
    answer = client.getresponse()
    answer.read()
    assert answer.status == 201, (name, answer.status)
PYTHON
load_keys "$PORT" 1000 --ack 2 --from 2
python3 - "$A" <<'PYTHON' || exit 1
import os, sys
pipe = os.open("/proc/%s/fd/2" % sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
try:
    while True:
        os.write(pipe, b"\n" * 4096)
except BlockingIOError:
    pass
PYTHON

for ((round = 1; round <= ROUNDS; round++)); do
  for kind in alone attacked; do
    progress "Round $round of $ROUNDS: $kind."
    ATTACKERS=''
    if [[ $kind == attacked ]]; then
      "${ATTACK_PRIORITY[@]}" taskset -c "$LOAD_CORE" "$ATTACK" "127.0.0.1:$PORT" "127.0.0.1:$((PORT + 10000))" "$IDLE" "$DRIBBLING" "$UNREAD" \
        "$STRANGERS" $((SECONDS_EACH + 1)) >"$WORK/attack.log" 2>&1 &
      ATTACKERS=$!
      STARTED+=("$ATTACKERS")
      wait_for_text "$WORK/attack.log" begun 130 "$ATTACKERS" 'The attack'
    fi
    before=$(server_ticks)
    run_client "$WORK/$kind-$round.json" "$SECONDS_EACH"
    printf '%s %s %s\n' $(($(server_ticks) - before)) "$(anonymous_kb "$A")" "$(file_kb "$A")" >"$WORK/$kind-$round.server"
    if [[ -n $ATTACKERS ]]; then
      wait "$ATTACKERS"
      forget "$ATTACKERS"
      tail -n 1 "$WORK/attack.log" >"$WORK/attack-$round.said"
      pause 3 # until what they held is let go
    fi
  done
done
python3 - "$WORK" "$ROUNDS" "$SECONDS_EACH" "$CLOCK_TICKS" "$GROWTH_MAX_KB" "$STYLE" <<'PYTHON'
import json, statistics, sys
folder, rounds, seconds, ticks, growth_max, style = sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6]
rows, failed = {}, 0
for kind in ("alone", "attacked"):
    for number in range(1, rounds + 1):
        with open("%s/%s-%d.json" % (folder, kind, number)) as file:
            run = json.load(file)
        with open("%s/%s-%d.server" % (folder, kind, number)) as file:
            cpu, anonymous, _ = map(int, file.read().split())
        lost = run["non_2xx_3xx"] + sum(run["errors"].values())
        failed += lost
        latency = run["latency_us"]
        rows.setdefault(kind, []).append((latency["p50"], latency["p99"], latency["p100"], lost, cpu * 100 / ticks / seconds, anonymous / 1024))
    middle = [statistics.median(column) for column in zip(*rows[kind])]
    rows[kind].append(middle)
lines = ["%-14s %10s %10s %10s %8s %10s %14s" % ("", "p50, us", "p99, us", "max, us", "failed", "CPU, %", "memory, MiB")]
if style == "markdown":
    lines = ["| | p50, µs | p99, µs | max, µs | failed | CPU, % of a core | anonymous memory, MiB |", "|---|---|---|---|---|---|---|"]
for kind in ("alone", "attacked"):
    for number, row in enumerate(rows[kind], 1):
        name = "%s, %s" % (kind, "median" if number > rounds else number)
        row = "%.0f %.0f %.0f %.0f %.1f %.1f" % tuple(row)
        lines.append("| %s | %s |" % (name, row.replace(" ", " | ")) if style == "markdown" else "%-14s %10s %10s %10s %8s %10s %14s" % (name, *row.split()))
print("\n".join(lines))
alone, attacked = rows["alone"][-1], rows["attacked"][-1]
for number in range(1, rounds + 1):
    with open("%s/attack-%d.said" % (folder, number)) as file:
        print("Attack %d: %s" % (number, file.read().strip()))
growth = (attacked[5] - alone[5]) * 1024
def verdict(is_met):
    return "yes" if is_met else "no"
print("p99 attacked <= 2 x alone: %s (%.2f x)" % (verdict(attacked[1] <= 2 * alone[1]), attacked[1] / alone[1]))
print("memory within %d MiB above alone: %s (%.1f MiB)" % (growth_max / 1024, verdict(growth <= growth_max), growth / 1024))
print("no request of the client failed: %s" % verdict(failed == 0))
PYTHON
