#!/usr/bin/env bash
# Builds every Go program of the image a second time, with an empty compiler cache, and compares it with the first.
#
#   setup/rebuild.sh
#
# Called by make e2e-full. It takes as long as a first `image build`. Exit 1 names each program that differs.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

cargo build --locked --bin ktcw-vm
program=$target/debug/ktcw-vm
first=$cache
second=$target/rebuild
rm -rf -- "${second:?}"
trap 'chmod -R u+w "$second"; rm -rf -- "$second"' EXIT
mkdir -p "$second"
setup/images.sh "$program"
GOCACHE=$second/go KTCW_CACHE_DIR=$second/cache setup/images.sh "$program"

compared=0 different=0
for path in "$second"/cache/stages/*/*; do
  name=${path#"$second"/cache/stages/}
  case ${name##*/} in stage.json | packages.txt | rootfs.tar) continue ;; esac
  compared=$((compared + 1))
  if ! cmp -s "$path" "$first/stages/$name"; then
    different=$((different + 1))
    say "differs from the first build, or is not there: $name"
  fi
done
[ "$compared" -ge 7 ] || die 1 "only $compared programs were compared"
[ "$different" -eq 0 ] || die 1 "$different of $compared programs differ"
say "$compared programs built twice are the same, byte for byte"
