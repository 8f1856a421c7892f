#!/usr/bin/env bash
# All operations and refusals of the HTTP API, by the clients that people use: http.client, requests,
# httpx, aiohttp, fetch and http of Node.js, net/http of Go, HttpClient of Java, reqwest, curl, wget.
#
#     scripts/check-clients.sh [--koltso PATH] [CLIENT...]
#
# clients/cases.py has the requests and the answers that are right; each client makes them against
# nodes of its own, and one line says what came out. What is missing for a client is said in a line
# that begins with SKIPPED, and counted. Exit code 1: an answer was wrong; 2: nothing could be checked.
set -euo pipefail
cd "$(dirname "$0")/.."

KOLTSO=target/release/koltso
BUILT=target/clients # what is built or installed for the check
NAMES=(http.client requests httpx aiohttp fetch node-http go java reqwest curl wget)
export PYTHONDONTWRITEBYTECODE=1

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; }

while (($#)); do
  case $1 in
    --koltso) KOLTSO=${2:?--koltso needs a path}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    -*) printf "There is no option '%s'; see --help.\n" "$1" >&2; exit 2 ;;
    *) break ;;
  esac
done
WANTED=("${@:-${NAMES[@]}}")
for name in "${WANTED[@]}"; do
  [[ " ${NAMES[*]} " == *" $name "* ]] || { printf "There is no client '%s'; there are: %s.\n" "$name" "${NAMES[*]}" >&2; exit 2; }
done
command -v python3 >/dev/null || { echo 'This needs python3.' >&2; exit 2; }
[[ -x $KOLTSO ]] || { echo "No Koltso binary at $KOLTSO; build it with 'cargo build --release', or say --koltso PATH." >&2; exit 2; }

mkdir -p "$BUILT"
has() { command -v "$1" >/dev/null; }

# The virtual environment of the Python clients, made anew when what they need has changed.
python_clients() {
  local venv=$BUILT/venv
  cmp -s scripts/clients/requirements.txt "$venv/requirements.txt" && return
  rm -rf "$venv"
  python3 -m venv "$venv" && "$venv/bin/pip" install -q --require-hashes --no-deps -r scripts/clients/requirements.txt &&
    cp scripts/clients/requirements.txt "$venv/"
}

# The command of a client, or SKIPPED: and why.
command_of() {
  case $1 in
    http.client) echo 'python3 scripts/clients/http_client.py' ;;
    requests | httpx | aiohttp)
      if python_clients >&2; then echo "$BUILT/venv/bin/python scripts/clients/$1_client.py"; else echo 'SKIPPED: pip or its registry'; fi ;;
    fetch) if has node; then echo 'node scripts/clients/node_fetch.mjs'; else echo 'SKIPPED: node (the Debian package nodejs)'; fi ;;
    node-http) if has node; then echo 'node scripts/clients/node_http.mjs'; else echo 'SKIPPED: node (the Debian package nodejs)'; fi ;;
    go)
      if has go; then
        go build -o "$BUILT/go" scripts/clients/client.go >&2 && echo "$BUILT/go"
      else
        echo 'SKIPPED: go (the Debian package golang-go)'
      fi ;;
    java)
      if has javac; then
        javac -d "$BUILT/java" scripts/clients/Client.java >&2 &&
          echo "java -Djdk.httpclient.allowRestrictedHeaders=host,connection -cp $BUILT/java Client"
      else
        echo 'SKIPPED: javac (the Debian package default-jdk-headless)'
      fi ;;
    reqwest)
      if has cargo; then
        cargo build -q --locked --manifest-path scripts/clients/reqwest/Cargo.toml --target-dir "$BUILT/cargo" >&2 &&
          echo "$BUILT/cargo/debug/koltso-check-reqwest"
      else
        echo 'SKIPPED: cargo'
      fi ;;
    curl | wget) if has "$1"; then echo "python3 scripts/clients/$1_client.py"; else echo "SKIPPED: $1 (the Debian package $1)"; fi ;;
  esac
}

CLIENTS=()
for name in "${WANTED[@]}"; do
  command=$(command_of "$name") || { echo "The client $name could not be built." >&2; exit 2; }
  CLIENTS+=("$name=$command")
done
exec python3 scripts/clients/run.py "$KOLTSO" "${CLIENTS[@]}"
