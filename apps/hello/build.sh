#!/bin/sh
# usage: build.sh VERSION OUT_DIR
# Builds the hello app's image and writes it to OUT_DIR as an OCI layout with plain tar layers. The same version gives the same
# bytes anywhere with the same busybox; nothing is left in the user's own image store. Needs podman, python3, busybox-static.
set -eu
version=${1:-} out=${2:-}
[ -n "$version" ] && [ -n "$out" ] || { echo "usage: build.sh VERSION OUT_DIR" >&2; exit 2; }
case $version in *[!A-Za-z0-9._-]*) echo "build.sh: not a version: $version" >&2; exit 2 ;; esac
[ ! -e "$out" ] || { echo "build.sh: $out exists; name a folder that does not" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
case $out in /*) ;; *) out=$PWD/$out ;; esac
busybox=${BUSYBOX:-/bin/busybox}
for needed in podman python3 "$busybox"; do
    command -v "$needed" >/dev/null || { echo "build.sh: $needed is missing (Debian: apt-get install podman python3 busybox-static)" >&2; exit 4; }
done

umask 022
work=$(mktemp -d "${TMPDIR:-/var/tmp}/hello-build-XXXXXX")
store() { podman --root "$work/store" --runroot "$work/run" "$@"; }
clean() {
    trap - EXIT INT TERM
    # Layers belong to users that only exist inside podman's user namespace.
    if [ "$(id -u)" = 0 ]; then rm -rf "$work"; else podman unshare rm -rf "$work"; fi
}
trap clean EXIT
trap 'clean; exit 130' INT
trap 'clean; exit 143' TERM

cp -r "$here/image" "$work/context"
cd "$work/context"
mkdir -p base/bin
cp "$busybox" base/bin/busybox
for applet in sh httpd cat mv sed tr sha256sum; do ln -s busybox "base/bin/$applet"; done
mkdir -p owned/data ballast version/etc
printf '%s\n' "$version" > version/etc/hello-version
# 64 MiB that do not compress and are the same everywhere: the output of SHAKE256 (FIPS 202) for one fixed word.
python3 -c 'import hashlib, sys; sys.stdout.buffer.write(hashlib.shake_256(b"archipelago hello").digest(64 << 20))' > ballast/ballast.bin
# Modes too are part of a layer, and a checkout's follow its owner's umask.
find . -type d -exec chmod 755 {} +
find . -type f -exec chmod 644 {} +
chmod 755 base/bin/busybox base/etc/start base/www/cgi-bin/index.cgi base/www/cgi-bin/status

store build --quiet --layers --timestamp 0 --network none --tag "localhost/hello:$version" . >/dev/null
store save --quiet --uncompressed --format oci-dir --output "$work/layout" "localhost/hello:$version"
mkdir -p "$(dirname "$out")"
mv "$work/layout" "$out"
