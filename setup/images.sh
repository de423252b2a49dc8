#!/usr/bin/env bash
# Builds the guest image: setup/images.sh PROGRAM [flags of `image build`…], where PROGRAM is a ktcw-vm.
# Called by `make images` and by the suites that want an image. The program does it as whoever calls. Where that is an ordinary user
# and the program says that those may make no namespaces here (Ubuntu since 23.10), root does it, by sudo, in the caller's own
# directories; what is made in them is the caller's again, however it ends.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

program=$(realpath -- "${1:?images.sh: which program?}")
shift

# Where a build writes, a line each: the program, and Go.
directories() {
  echo "$cache"
  go env GOCACHE GOMODCACHE GOTELEMETRYDIR
}

# KTCW_BUILD_FOR=UID:GID, set below: whose those directories are. What is not theirs stays as it is.
give_back() {
  local status=$? dir
  trap - EXIT
  while read -r dir; do
    [ "$(stat -L -c %u -- "$dir" 2>/dev/null)" = "${KTCW_BUILD_FOR%:*}" ] || continue
    find "$dir/" -user 0 -exec chown -h "$KTCW_BUILD_FOR" {} + || true
  done < <(directories)
  exit "$status"
}

if [ "$EUID" -eq 0 ]; then
  [ -n "${KTCW_BUILD_FOR:-}" ] || exec "$program" image build "$@"
  trap give_back EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  "$program" image build "$@"
  exit
fi

# As the program says it (src/image/mod.rs); a test shows it the program's own words.
refusal='does not let an ordinary user make the namespaces'

said=$(mktemp)
trap 'rm -f "$said"' EXIT
# All that it says is passed on but for this refusal: that is no error yet.
status=0
{ "$program" image build "$@" 2>&1 >&3 | tee "$said" | sed -u "/$refusal/,\$d" >&2; } 3>&1 || status=$?
grep -q "$refusal" "$said" || exit "$status"
if ! command -v sudo >/dev/null; then
  sed -n "/$refusal/,\$p" "$said" >&2
  exit "$status"
fi
say "an ordinary user may make no namespaces here: root builds the image. sudo may ask for your password"
# Made by us when they are not there, or root would make them, and those above them, its own.
while read -r dir; do
  [ -z "$dir" ] || mkdir -p -- "$dir"
done < <(directories)
KTCW_BUILD_FOR=$EUID:$(id -g) as_root "$root/setup/images.sh" "$program" "$@"
