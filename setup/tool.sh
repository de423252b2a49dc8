#!/usr/bin/env bash
# A checking tool that is built from source once and kept: setup/tool.sh cargo-deny|govulncheck prints the path of the binary.
# Called by `make lint` and `make audit` only: building takes minutes, so nothing that a newcomer types needs one.
set -euo pipefail
# shellcheck source=setup/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

name=${1:-}
case $name in
  cargo-deny) version=0.20.2 ;;
  govulncheck) version=1.9.0 ;;
  *) die 2 "usage: setup/tool.sh cargo-deny|govulncheck" ;;
esac
dir=$cache/tools/$name-$version
binary=$dir/bin/$name

mkdir -p "$cache/tools"
exec 9>"$cache/tools/$name.lock"
flock 9
if [ ! -x "$binary" ]; then
  say "building $name $version, once: minutes (kept in $dir)"
  fresh=$dir.$$
  trap 'rm -rf -- "$fresh"' EXIT
  case $name in
    # Away from this directory, whose target directory, lock file and settings are not the tool's.
    cargo-deny) (cd / && CARGO_TARGET_DIR="$fresh/target" cargo install --quiet --locked --version "$version" --root "$fresh" "$name") >&2 ;;
    govulncheck) (cd / && GOFLAGS='' GOBIN="$fresh/bin" go install "golang.org/x/vuln/cmd/$name@v$version") >&2 ;;
  esac
  rm -rf -- "$fresh/target" "$dir"
  mv "$fresh" "$dir"
fi
echo "$binary"
