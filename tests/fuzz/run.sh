#!/bin/sh
# Fuzzes every decoder for SECONDS each (20 by default): tests/fuzz/run.sh [SECONDS] [TARGET…]
# A stable toolchain will do: coverage comes from LLVM's own pass. Inputs that were found worth keeping stay in corpus/.
set -eu
cd "$(dirname "$0")"
seconds=${1:-20}
[ $# -gt 0 ] && shift
targets=${*:-$(ls fuzz_targets | sed 's/\.rs$//')}
out=${CARGO_TARGET_DIR:-target}/fuzz
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
# With --target the flags are not those of build scripts.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS=$coverage CARGO_TARGET_DIR=$out ${CARGO:-cargo} build --release --target "$host" --bins
for target in $targets; do
    mkdir -p "corpus/$target"
    echo "== $target, $seconds s"
    "$out/$host/release/$target" "corpus/$target" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="corpus/crash-$target-" -verbosity=0 -print_final_stats=1
done
