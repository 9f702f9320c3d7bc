#!/usr/bin/env bash
# Installs what building, testing and the demo need on Debian 12 with rustup: only what is missing, so running it again
# costs a second. `--demo` leaves out what only tests and benchmarks use.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly BPF_LINKER=0.13.0
# Loads the LLVM of rustc itself, for hosts where Debian's LLVM 22 cannot be had.
readonly BPF_LINKER_WITHOUT_LLVM=0.10.4
# Tests the registration API against its own document.
readonly SCHEMATHESIS=4.32.5
# Brings axe-core, which looks for what keeps people from using the dashboard.
readonly AXE_WHEEL=axe-playwright-python==0.1.8
readonly LLVM_PREFIX=/usr/lib/llvm-22

base=(ca-certificates curl gcc cmake make iproute2 nginx openssl procps)
tests=(binutils bpftool chromium etcd-client etcd-server ethtool haproxy hatop iperf3 iptables jq mariadb-client-core mariadb-server-core
  nftables nghttp2-client prometheus prometheus-haproxy-exporter python3 qemu-system-x86 redis-server socat tcpdump wireguard-go
  wireguard-tools xz-utils)
arm64=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static)

say() { printf '%s\n' "$*" >&2; }
die() { say "install-tools: $*"; exit 1; }

as_root() {
  if [[ $EUID -eq 0 ]]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
    die "needs root for: $* (run it as root, or install sudo)"
  fi
}

installed() { [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# Services that a package would start are not wanted here: the lab starts its own, in namespaces.
apt_install() {
  local policy=/usr/sbin/policy-rc.d made_policy=
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
    made_policy=1
  fi
  local status=0
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" || status=$?
  if [[ -n $made_policy ]]; then as_root rm -f $policy; fi
  return $status
}

updated=
apt_update() {
  [[ -n $updated ]] || as_root apt-get update
  updated=1
}

install_packages() {
  local missing=() package
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [[ ${#missing[@]} -eq 0 ]] && return
  say "installing from Debian: ${missing[*]}"
  apt_update
  apt_install "${missing[@]}"
}

install_rust() {
  command -v cargo >/dev/null || export PATH="$HOME/.cargo/bin:$PATH"
  command -v rustup >/dev/null || die "rustup is missing; https://rustup.rs says how to install it"
  local channel components
  channel=$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)
  rustup toolchain list | grep -q "^$channel" || rustup toolchain install "$channel" --profile minimal
  components=$(rustup component list --toolchain "$channel" --installed)
  for component in rust-src clippy rustfmt; do
    grep -q "^$component" <<<"$components" || rustup component add --toolchain "$channel" "$component"
  done
}

install_bpf_linker() {
  if bpf-linker --version >/dev/null 2>&1; then return; fi
  say "building bpf-linker, which links the kernel programs"
  if ! installed llvm-22-dev; then
    apt_update
    apt_install llvm-22-dev || say "llvm-22-dev cannot be had here; taking the bpf-linker that brings no LLVM"
  fi
  if installed llvm-22-dev; then
    # Debian's llvm-config looks for these when it names what to link with.
    install_packages g++ zlib1g-dev libzstd-dev
    LLVM_PREFIX=$LLVM_PREFIX cargo install bpf-linker --version $BPF_LINKER --locked --no-default-features --features llvm-22
  else
    cargo install bpf-linker --version $BPF_LINKER_WITHOUT_LLVM --locked
  fi
}

install_schemathesis() {
  if command -v schemathesis >/dev/null; then return; fi
  say "installing schemathesis into /opt/schemathesis"
  install_packages python3-venv
  as_root python3 -m venv /opt/schemathesis
  if as_root /opt/schemathesis/bin/pip install --quiet "schemathesis==$SCHEMATHESIS"; then
    as_root ln -sf /opt/schemathesis/bin/schemathesis /usr/local/bin/schemathesis
  else
    say "schemathesis cannot be had here; its scenario will be skipped"
  fi
}

install_axe() {
  if [[ -e /opt/axe-core/axe.min.js ]]; then return; fi
  say "installing axe-core into /opt/axe-core"
  install_packages python3-venv
  local dir status=0
  dir=$(mktemp -d)
  python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" download --quiet --no-deps --dest "$dir" "$AXE_WHEEL" \
    && python3 -m zipfile -e "$dir"/*.whl "$dir" \
    && as_root install -D -m 644 "$dir/axe_playwright_python/axe.min.js" /opt/axe-core/axe.min.js || status=$?
  rm -rf "$dir"
  [[ $status -eq 0 ]] || say "axe-core cannot be had here; its scenario will be skipped"
}

mount_bpffs() {
  [[ $(stat --file-system --format=%T /sys/fs/bpf) == bpf_fs ]] && return
  say "mounting /sys/fs/bpf"
  as_root mount -t bpf -o mode=0700 bpf /sys/fs/bpf
}

case "${1:-}" in
  '') packages=("${base[@]}" "${tests[@]}") ;;
  --demo) packages=("${base[@]}" bpftool nftables) ;;
  --arm64) packages=("${base[@]}" "${tests[@]}" "${arm64[@]}") ;;
  *) die "usage: install-tools.sh [--demo | --arm64]" ;;
esac

install_packages "${packages[@]}"
install_rust
install_bpf_linker
if [[ ${1:-} == --arm64 ]]; then rustup target add aarch64-unknown-linux-gnu; fi
if [[ ${1:-} != --demo ]]; then
  install_schemathesis
  install_axe
fi
mount_bpffs
