#!/usr/bin/env bash
# Runs the drill engine against real etcd processes, each in a network namespace of its own; all gone afterwards.
#
#   setup/native.sh test|bench [libtest arguments…]
#
# Called by make (test, bench) and so by CI. Root, or sudo: namespaces need it. `test` runs what is timed first and alone, the
# rest side by side; `bench` the thirty leader-kills only. etcd comes from the guest image's cache, which `ktcw-vm image build`
# fills. Figures, the report's page and what failed tests leave are kept in target/bench. KTCW_NO_BROWSER=1 leaves out what needs a
# browser, and says so, as where apt has none; in CI nothing is left out.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

suite=${1:-}
[ $# -eq 0 ] || shift
case $suite in test | bench) ;; *) die 2 "usage: setup/native.sh test|bench [libtest arguments…]" ;; esac
# Of one part; each is done in a fraction of it.
deadline=${KTCW_NATIVE_DEADLINE:-600}

# Built as whoever calls, with their cargo and in their target directory.
if [ -z "${KTCW_NATIVE_BINARY:-}" ]; then
  messages=$(cargo test --locked --test drills_native --no-run --message-format json-render-diagnostics)
  KTCW_NATIVE_BINARY=$(sed -n 's/.*"name":"drills_native".*"executable":"\([^"]*\)".*/\1/p' <<<"$messages")
  [ -x "$KTCW_NATIVE_BINARY" ] || die 1 "cargo built no drills_native"
  export KTCW_NATIVE_BINARY
fi
if [ "$EUID" -ne 0 ]; then
  as_root "$root/setup/native.sh" "$suite" "$@"
  exit
fi

etcd=$(find "$cache/stages" -mindepth 2 -maxdepth 2 -path '*/etcd-*/etcd' -printf '%T@ %h\n' 2>/dev/null | sort -n | tail -n 1)
KTCW_ETCD_BIN_DIR=${KTCW_ETCD_BIN_DIR:-${etcd#* }}
[ -n "$KTCW_ETCD_BIN_DIR" ] || die 1 "no etcd in $cache: run 'ktcw-vm image build'"
export KTCW_ETCD_BIN_DIR KTCW_DRILL_OUT=$target/bench

unchecked="KTCW_NO_BROWSER is set"
if ! browser_to_be_had; then
  unchecked="apt has none here"
  export KTCW_NO_BROWSER=1
fi

work=$target/native
mkdir -p "$work" "$KTCW_DRILL_OUT"
exec 8>"$work/lock"
flock --nonblock 8 || die 75 "another run of the native suite holds $work/lock"

tests=
finish() {
  local status=$?
  trap - EXIT INT TERM
  if [ -n "$tests" ] && kill "$tests" 2>/dev/null; then wait "$tests" || true; fi
  # Through sudo, the target directory is still the caller's: `make clean` must be able to empty it.
  if [ -n "${SUDO_UID:-}" ]; then chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$work" "$KTCW_DRILL_OUT" 2>/dev/null || true; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In the background, so that Ctrl-C is heard at once; timeout ends all of it, also when this script is killed outright.
# A namespace that a killed run has left is swept away by the next.
part() {
  setpriv --pdeathsig TERM timeout --kill-after=15 "$deadline" "$KTCW_NATIVE_BINARY" --nocapture "$@" </dev/null 8>&- &
  tests=$!
  local status=0
  wait "$tests" || status=$?
  tests=
  [ "$status" -ne 124 ] || say "$suite: not finished after $deadline s (KTCW_NATIVE_DEADLINE)"
  [ "$status" -eq 0 ] || exit "$status"
}

case $suite in
  test)
    part --test-threads=3 passes:: --skip passes::one "$@"
    part --test-threads=1 distribution:: "$@"
    part --test-threads=6 --skip passes:: --skip distribution:: --skip driver:: "$@"
    # Once more at the end, where it is seen.
    [ -z "${KTCW_NO_BROWSER:-}" ] || say "NOT CHECKED: a drill's page in a browser ($unchecked)"
    ;;
  bench) part --test-threads=1 distribution:: "$@" ;;
esac
