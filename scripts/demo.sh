#!/usr/bin/env bash
# Shows ingress at work on this machine, in network namespaces that are gone afterwards. Needs root for these.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"

if [[ $EUID -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "demo: needs root for network namespaces" >&2; exit 1; }
  exec sudo --preserve-env=HOME,PATH "$0" "$@"
fi

./scripts/install-tools.sh --demo
echo "building (the first time takes some minutes) ..." >&2
cargo build --quiet --release --locked --package ingress --package ingress-tests --bin ingress --bin demo
exec target/release/demo "$@"
