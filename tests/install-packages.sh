#!/bin/sh
# Installs what the demo, the tests and the benchmark need on Debian 12, and fetches the guest kernel.
#
# Idempotent, and quick when everything is there. Leaves the system's own apt sources untouched: QEMU 10 comes from
# bookworm-backports through a private source list and private package lists under `.assets/apt`.
#   .assets/kernel/vmlinuz     Debian's cloud kernel, booted by the guests of the tests
#   .assets/kernel/modules/    its modules (what the package has under `lib/modules/<version>`)
#   .assets/promtool           Prometheus' own checker of rules, out of Debian's package; Prometheus itself is not installed
#   .assets/schemathesis/      a Python environment with schemathesis, which tests the management interface
# Environment: DEBIAN_MIRROR (default http://deb.debian.org/debian), LAMINA_ASSETS (default `.assets` beside Cargo.toml).
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
assets=${LAMINA_ASSETS:-$root/.assets}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
# For the build (nasm and autotools build ISA-L, libclang reads its headers), then what guests and baselines are made of.
packages="gcc libc6-dev make pkg-config nasm autoconf automake libtool libclang-dev busybox-static e2fsprogs fdisk util-linux mount procps python3-venv"
# The agent that a guest runs, and what libvirt says a domain is.
packages="$packages qemu-guest-agent libvirt0 libxml2-utils"
backports="qemu-system-x86 qemu-utils"
# From PyPI, since Debian has none.
schemathesis=4.32.5

say() { printf 'install-packages: %s\n' "$*"; }
fail() { printf 'install-packages: %s\n' "$*" >&2; exit 1; }

installed() {
    status=$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null || true)
    [ "$status" = installed ]
}

qemu_is_new_enough() {
    version=$(dpkg-query -W -f='${Version}' qemu-system-x86 2>/dev/null || true)
    [ -n "$version" ] && dpkg --compare-versions "$version" ge 1:9.2
}

missing=""
for package in $packages; do
    installed "$package" || missing="$missing $package"
done
newer=""
for package in $backports; do
    installed "$package" || newer="$newer $package"
done
qemu_is_new_enough || newer="$backports"
kernel_there=no
[ -s "$assets/kernel/vmlinuz" ] && [ -d "$assets/kernel/modules" ] && kernel_there=yes

schemathesis_there=no
[ "$(cat "$assets/schemathesis/version" 2>/dev/null || true)" = $schemathesis ] && schemathesis_there=yes

promtool_there=no
[ -x "$assets/promtool" ] && promtool_there=yes

if [ -z "$missing" ] && [ -z "$newer" ] && [ $kernel_there = yes ] && [ $schemathesis_there = yes ] && [ $promtool_there = yes ]; then
    exit 0
fi

command -v apt-get >/dev/null || fail "this is not a Debian system: install by hand:$missing$newer, and a cloud kernel under $assets/kernel"
mkdir -p "$assets/apt/sources" "$assets/apt/lists/partial" "$assets/kernel"
cat >"$assets/apt/sources/lamina.sources" <<END
Types: deb
URIs: $mirror
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
apt="-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$assets/apt/sources -o Dir::State::lists=$assets/apt/lists"
apt="$apt -o APT::Sandbox::User=root -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -q"
export DEBIAN_FRONTEND=noninteractive

if [ -n "$missing$newer" ] || [ $kernel_there = no ]; then
    # shellcheck disable=SC2086  # the options and the package lists are words on purpose
    apt-get $apt update >"$assets/apt/update.log" 2>&1 || { cat "$assets/apt/update.log" >&2; fail "cannot read the package lists of $mirror"; }
fi

if [ -n "$missing$newer" ]; then
    [ "$(id -u)" = 0 ] || fail "run me as root once: packages are missing:$missing $newer"
    say "installing$missing $newer"
    # shellcheck disable=SC2086
    if [ -n "$missing" ]; then
        apt-get $apt install -y --no-install-recommends $missing >"$assets/apt/install.log" 2>&1 || { tail -n 20 "$assets/apt/install.log" >&2; fail "apt-get install failed"; }
    fi
    # shellcheck disable=SC2086
    if [ -n "$newer" ]; then
        apt-get $apt install -y --no-install-recommends -t bookworm-backports $newer >>"$assets/apt/install.log" 2>&1 || { tail -n 20 "$assets/apt/install.log" >&2; fail "apt-get install from bookworm-backports failed"; }
    fi
fi

if [ $kernel_there = no ]; then
    # The metapackage names the current cloud kernel of the stable release.
    # shellcheck disable=SC2086
    image=$(apt-cache $apt depends linux-image-cloud-amd64/bookworm 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\).*/\1/p' | head -n 1)
    [ -n "$image" ] || fail "cannot find the cloud kernel in the package lists"
    say "fetching $image"
    work=$(mktemp -d "$assets/kernel/new.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # shellcheck disable=SC2086
    (cd "$work" && apt-get $apt download "$image" >"$assets/apt/download.log" 2>&1) || { tail -n 20 "$assets/apt/download.log" >&2; fail "cannot download $image"; }
    dpkg -x "$work"/linux-image-*.deb "$work/root"
    rm -rf "$assets/kernel/modules" "$assets/kernel/vmlinuz"
    mv "$work"/root/lib/modules/* "$assets/kernel/modules"
    # Last, since its presence says that the rest is complete.
    mv "$work"/root/boot/vmlinuz-* "$assets/kernel/vmlinuz"
fi
if [ $promtool_there = no ]; then
    say "fetching promtool"
    tools=$(mktemp -d "$assets/promtool.XXXXXX")
    # shellcheck disable=SC2086
    (cd "$tools" && apt-get $apt download prometheus >"$assets/apt/download.log" 2>&1) || { tail -n 20 "$assets/apt/download.log" >&2; fail "cannot download prometheus"; }
    dpkg -x "$tools"/prometheus_*.deb "$tools/root"
    mv "$tools/root/usr/bin/promtool" "$assets/promtool"
    rm -rf "$tools"
fi
if [ $schemathesis_there = no ]; then
    say "installing schemathesis $schemathesis"
    rm -rf "$assets/schemathesis"
    # The system's own Python: its environments last as long as it does.
    /usr/bin/python3 -m venv "$assets/schemathesis"
    "$assets/schemathesis/bin/pip" install -q --disable-pip-version-check "schemathesis==$schemathesis" >"$assets/pip.log" 2>&1 || { tail -n 20 "$assets/pip.log" >&2; fail "cannot install schemathesis from PyPI"; }
    # Last, since it says that the rest is complete.
    echo $schemathesis >"$assets/schemathesis/version"
fi
say "ready"
