#!/usr/bin/env bash
# Installs what is missing, then runs every check, test and scenario. Arguments go to `cargo xtask test`.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"

./scripts/install-tools.sh
exec cargo xtask test "$@"
