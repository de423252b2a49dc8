#!/usr/bin/env bash
# Every fuzz target in turn, SECONDS_IN_ALL (300) shared out evenly: fuzz/run.sh [TARGET...]. What is found is kept in fuzz/artifacts
# and reproduced with: fuzz/run.sh TARGET fuzz/artifacts/FILE. Needs a C++ compiler for libFuzzer itself; no nightly compiler and
# no cargo-fuzz: the coverage that libFuzzer wants comes from flags that a stable rustc has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

target_dir=${CARGO_TARGET_DIR:-$PWD/target}
triple=$(rustc -vV | sed -n 's/^host: //p')
# As cargo-fuzz has them, without a sanitizer: there is no unsafe code of ours to watch. With --target they are not applied to
# build scripts.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16"
RUSTFLAGS=$flags CARGO_TARGET_DIR=$target_dir cargo build --locked --release --target "$triple" --bins
bin=$target_dir/$triple/release

if [ $# -eq 2 ] && [ -f "../$2" ]; then
  exec "$bin/$1" "../$2"
fi
names=("$@")
[ $# -gt 0 ] || mapfile -t names < <(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' Cargo.toml)
each=$((${SECONDS_IN_ALL:-300} / ${#names[@]}))
mkdir -p artifacts
for name in "${names[@]}"; do
  # New inputs go into a directory that is thrown away: the corpus in the repository stays as small as it is.
  found=$(mktemp -d)
  trap 'rm -rf -- "$found"' EXIT
  echo "$name: $each s"
  "$bin/$name" "$found" "corpus/$name" -max_total_time="$each" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
    -artifact_prefix=artifacts/"$name"- -print_final_stats=1 2>&1 | grep -E '^stat::number|^SUMMARY|panicked|ERROR|^Test unit|DONE' \
    | sed "s/^/  /"
  rm -rf -- "$found"
done
