#!/usr/bin/env bash
# See that a C++ compiler, CMake and OpenSSL's headers are here; on Debian, install what is missing.
set -euo pipefail
missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v cmake >/dev/null || missing+=(cmake)
command -v make >/dev/null || missing+=(make)
[ -e /usr/include/openssl/evp.h ] || missing+=(libssl-dev)
[ ${#missing[@]} -eq 0 ] && exit 0
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)
"${root[@]}" apt-get -qq update
"${root[@]}" apt-get -qq install --no-install-recommends --yes "${missing[@]}"
