#!/usr/bin/env bash
# Rolls out a new build of ingress to one host over ssh, and takes it back if the host does not become ready.
#
#   HOST=root@proxy-1.example.com scripts/deploy.sh [--dry-run] [BINARY]
#
# Connections that run in the kernel go on throughout; what the old daemon still relays is drained first. Exit codes: 0 the new
# build serves, 1 it does not (the previous one is back unless the last line says otherwise), 2 wrong use or configuration.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: HOST=[user@]host scripts/deploy.sh [--dry-run] [BINARY]

  BINARY     the build to roll out (default: target/release/ingress)
  --dry-run  upload and check against the host's configuration, then remove it again

environment:
  HOST           where to (required); the user must be root, or may run sudo without a password
  CONFIG         the host's configuration (default: /etc/ingress/ingress.yaml)
  DESTINATION    where the binary goes (default: /usr/bin/ingress)
  UNIT           the systemd unit (default: ingress)
  READY_TIMEOUT  seconds until the new build must be ready (default: 30)
  SSH            the ssh command (default: ssh)
USAGE
}

say() { printf 'deploy: %s\n' "$*" >&2; }

# In single quotes, which every shell that may wait on the host reads the same way.
quoted() { printf "'%s' " "${1//\'/\'\\\'\'}"; }

# fail CODE MESSAGE
fail() {
    say "$2"
    exit "$1"
}

dry_run=no
binary=
for argument in "$@"; do
    case $argument in
        --dry-run) dry_run=yes ;;
        -h | --help) usage; exit 0 ;;
        -*) usage >&2; fail 2 "unknown option $argument" ;;
        *)
            [[ -z $binary ]] || fail 2 "one binary at a time: $binary, then $argument"
            binary=$argument
            ;;
    esac
done
binary=${binary:-target/release/ingress}
config=${CONFIG:-/etc/ingress/ingress.yaml}
destination=${DESTINATION:-/usr/bin/ingress}
unit=${UNIT:-ingress}
ready_timeout=${READY_TIMEOUT:-30}
read -ra ssh_command <<<"${SSH:-ssh}"

[[ -n ${HOST:-} ]] || { usage >&2; fail 2 'HOST is not set'; }
[[ -x $binary ]] || fail 2 "$binary is not an executable file; build it (cargo build --release) or name another"
[[ $ready_timeout =~ ^[1-9][0-9]*$ ]] || fail 2 "READY_TIMEOUT is not a number of seconds: $ready_timeout"

# The host's side. It reads the new binary from its standard input; all else comes as arguments, so nothing is quoted twice.
remote_script=$(cat <<'REMOTE'
set -eu
config=$1 destination=$2 unit=$3 ready_timeout=$4 dry_run=$5 checksum=$6
say() { printf 'deploy: %s: %s\n' "$(uname -n)" "$*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Beside the destination, so that the swap is one rename on one file system.
new=$destination.new.$$ previous=$destination.previous
trap 'as_root rm -f "$new"' EXIT
# Not >, which the shell would do without as_root's powers.
as_root dd of="$new" bs=1M status=none
as_root chmod 0755 "$new"
[ "$(as_root sha256sum "$new" | cut -d' ' -f1)" = "$checksum" ] || { say 'the upload is not whole'; exit 1; }

say "checking $config with $("$new" version)"
as_root "$new" check --config "$config" || { say 'the new build refuses the configuration; nothing was changed'; exit 2; }
if [ "$dry_run" = yes ]; then
    say 'dry run: it would be rolled out; nothing was changed'
    exit 0
fi

is_ready() { as_root "$destination" status --config "$config" --output json 2>/dev/null | grep -q '"ready": true'; }
main_pid() { systemctl show --property MainPID --value "$unit"; }
# Ready, and as the same process three times in a row: a daemon that dies and comes back is not.
wait_ready() {
    good=0 pid=0 deadline=$(($(date +%s) + ready_timeout))
    while [ "$(date +%s)" -le "$deadline" ]; do
        now=$(main_pid)
        if [ "$now" != 0 ] && is_ready; then
            if [ "$now" = "$pid" ]; then good=$((good + 1)); else good=1 pid=$now; fi
            [ "$good" -lt 3 ] || return 0
        else
            good=0
        fi
        sleep 1
    done
    return 1
}

had_previous=no
if [ -e "$destination" ]; then
    # A copy, then a rename: $destination exists at every moment.
    as_root cp -p "$destination" "$previous.$$"
    as_root mv -f "$previous.$$" "$previous"
    had_previous=yes
fi
as_root mv -f "$new" "$destination"
say "restarting $unit"
if as_root systemctl restart "$unit" && wait_ready; then
    say "ready: $("$destination" version); the previous build stays as $previous"
    exit 0
fi

say "not ready within $ready_timeout s; the last lines of its log:"
as_root journalctl --unit "$unit" --lines 15 --no-pager --output cat >&2 || true
[ "$had_previous" = yes ] || { say 'ATTENTION: there is no previous build to go back to'; exit 1; }
say 'going back to the previous build'
as_root cp -p "$previous" "$new"
as_root mv -f "$new" "$destination"
if as_root systemctl restart "$unit" && wait_ready; then
    say "the previous build serves again: $("$destination" version)"
else
    say "ATTENTION: the previous build is not ready either; see journalctl --unit $unit"
fi
exit 1
REMOTE
)

checksum=$(sha256sum "$binary" | cut -d' ' -f1)
arguments=("$config" "$destination" "$unit" "$ready_timeout" "$dry_run" "$checksum")
# ssh joins its arguments with spaces and gives the host's shell one line, so each is quoted for that shell.
remote_command=$(for word in sh -c "$remote_script" deploy "${arguments[@]}"; do quoted "$word"; done)
say "uploading $binary to $HOST"
status=0
"${ssh_command[@]}" "$HOST" "$remote_command" <"$binary" || status=$?
case $status in
    0 | 1 | 2) exit "$status" ;;
    255) fail 1 "ssh to $HOST failed; nothing is known about the host" ;;
    *) fail 1 "the host's side ended with $status" ;;
esac
