#!/usr/bin/env bash
# See that a C++ compiler, CMake and OpenSSL's headers are here; with the word "clang" also clang and its sanitizers. On
# Debian, install what is missing.
set -euo pipefail
missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v cmake >/dev/null || missing+=(cmake)
command -v make >/dev/null || missing+=(make)
[ -e /usr/include/openssl/evp.h ] || missing+=(libssl-dev)
if [ "${1-}" = clang ]; then
    runtime=$(clang++ -print-file-name=libclang_rt.fuzzer-x86_64.a 2>/dev/null || true)
    [ -e "$runtime" ] || missing+=(clang libclang-rt-dev)
fi
[ ${#missing[@]} -eq 0 ] && exit 0
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)
"${root[@]}" apt-get -qq update
"${root[@]}" apt-get -qq install --no-install-recommends --yes "${missing[@]}"
