#!/usr/bin/env bash
# Unpack the headers that the C++ library is built with into the folder $1, from Debian packages; nothing is installed.
# ONNX Runtime's come from the next release where this one has none: they are declarations only, and the library that
# they are used with is found when a session is opened.
set -euo pipefail
target=$(mkdir -p "$1" && cd "$1" && pwd)
[ -e "$target/.complete" ] && exit 0
command -v apt-get >/dev/null || { echo "no apt-get here: install nlohmann-json, stb and ONNX Runtime's headers" >&2; exit 2; }
work=$(mktemp -d)
chmod 755 "$work" # apt drops its privileges while it downloads
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial"
cd "$work"

download() { apt-get "${options[@]}" -qq download "$1" 2>"$work/log"; }

options=()
for package in nlohmann-json3-dev libstb-dev libonnxruntime-dev; do
    if ! download "$package"; then
        if [ ${#options[@]} -eq 0 ]; then
            mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
            echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:?no Debian mirror is set up} trixie main" \
                >"$work/next.list"
            options=(-o "Dir::Etc::SourceList=$work/next.list" -o Dir::Etc::SourceParts=/dev/null
                -o "Dir::State::Lists=$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
            apt-get "${options[@]}" -qq update
        fi
        download "$package" || { cat "$work/log" >&2; echo "cannot download the package $package" >&2; exit 2; }
    fi
done
for archive in *.deb; do dpkg-deb -x "$archive" "$target"; done
touch "$target/.complete"
