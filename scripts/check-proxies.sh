#!/usr/bin/env bash
# The requests of check-clients.sh through nginx, HAProxy, Varnish and Apache, each with Debian's
# default settings and the lines that the README names ("Behind a proxy").
#
#     scripts/check-proxies.sh [--koltso PATH] [--rounds N]
#
# The answers have to be those of the node, refusals of large bodies among them in N of N times (100).
# The proxies run on free ports of loopback with their files in temporary folders. One that is missing
# is said in a line that begins with SKIPPED, and counted. Exit code 1: an answer was wrong.
set -euo pipefail
cd "$(dirname "$0")/.."

KOLTSO=target/release/koltso
ROUNDS=100

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; }

while (($#)); do
  case $1 in
    --koltso) KOLTSO=${2:?--koltso needs a path}; shift 2 ;;
    --rounds) ROUNDS=${2:?--rounds needs a number}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) printf "There is no option '%s'; see --help.\n" "$1" >&2; exit 2 ;;
  esac
done
[[ $ROUNDS =~ ^[1-9][0-9]*$ ]] || { echo "--rounds is a number from 1, not '$ROUNDS'." >&2; exit 2; }
command -v python3 >/dev/null || { echo 'This needs python3.' >&2; exit 2; }
[[ -x $KOLTSO ]] || { echo "No Koltso binary at $KOLTSO; build it with 'cargo build --release', or say --koltso PATH." >&2; exit 2; }

# Servers are not in everybody's path on Debian.
PATH=$PATH:/usr/sbin PYTHONDONTWRITEBYTECODE=1 exec python3 scripts/clients/proxies.py "$KOLTSO" "$ROUNDS"
