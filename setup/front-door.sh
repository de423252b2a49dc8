#!/usr/bin/env bash
# A newcomer's way, typed as the README has it: `make up`, a look, `make down`; then that nothing is left of it.
#
#   setup/front-door.sh DIR [flags for `ktcw-vm up`, as one word of shell…]
#
# Called by setup/e2e.sh, with one machine instead of five and with the program that it has built (KTCW_PROGRAM). All of it
# happens in DIR and in a namespace of its own, which `make up` makes itself where it finds no libvirt.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

dir=${1:?front-door.sh: which directory?}
shift
[ ! -e "$dir" ] || die 2 "$dir is there already"
mkdir -p "$dir"
export KTCW_NETNS=ktcw-door-$$ KTCW_LIBVIRT_DIR=$dir/libvirt XDG_STATE_HOME=$dir/state KUBECONFIG=$dir/kubeconfig
unset KTCW_CLUSTER KTCW_CONNECT KTCW_STATE_DIR MAKEFLAGS

private() { setup/libvirt-private.sh "$KTCW_NETNS" "$KTCW_LIBVIRT_DIR" "$@"; }

finish() {
  local status=$?
  trap - EXIT
  if [ -e "/run/netns/$KTCW_NETNS" ]; then
    timeout 120 bin/ktcw-vm down --yes || true
    private stop || say "the private libvirt of $KTCW_NETNS did not stop"
  fi
  rm -rf -- "$dir"
  exit "$status"
}
trap finish EXIT

# Machines of a test are in a namespace of their own, also where this computer has a libvirt to offer.
if [ -d /run/systemd/system ] || setup/libvirt.sh where >/dev/null 2>&1; then private start; fi

make up SIZE="--etcd 1 --workers 0" ARGS="$*"
[ -e "/run/netns/$KTCW_NETNS" ] || die 1 "make up used a libvirt that is not the test's"
make verify
# What `make shell` is for, as a program types it.
PATH="$root/bin:$PATH" setup/libvirt.sh exec ktcw-vm kubectl get --raw /readyz
echo
# The same from a shell that is not in there, in a directory of its own: a file by its name, the API by the proxy.
(cd "$dir" && "$root/bin/ktcw-vm" support bundle here.tar.gz && [ -s here.tar.gz ])
bin/ktcw-vm proxy --listen 127.0.0.1:0 >"$dir/proxy.log" &
proxy=$!
# shellcheck disable=SC2016
timeout 60 sh -c 'until grep -q "curl --cacert" "$1"; do sleep 0.1; done' sh "$dir/proxy.log"
eval "$(grep -o 'curl --cacert .*' "$dir/proxy.log") --silent --show-error --max-time 30" >"$dir/proxy.answer"
kill "$proxy"
wait "$proxy" || true
grep -q '"code": 403' "$dir/proxy.answer" || die 1 "the proxy answers $(cat "$dir/proxy.answer")"
make down
[ ! -e "/run/netns/$KTCW_NETNS" ] || die 1 "make down left namespace $KTCW_NETNS"
[ ! -e "$KTCW_LIBVIRT_DIR" ] || die 1 "make down left $(find "$KTCW_LIBVIRT_DIR" | head -n 5 | paste -sd ' ')"
left=$(find "$XDG_STATE_HOME" -type f 2>/dev/null | head -n 5 | paste -sd ' ')
[ -z "$left" ] || die 1 "make down left $left"
say "make up, make verify and make down: nothing is left"
