#!/bin/sh
# usage (by mmdebstrap, as a customize hook): fetch-kernel.sh ROOT
# Puts the kernel and a static busybox of the guest's own release into ROOT/.debs. The cloud kernel would be
# smaller, but it has no 9p.
set -eu
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
export APT_CONFIG
kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ {print $2; exit}')
mkdir "$1/.debs"
cd "$1/.debs"
apt-get -o APT::Sandbox::User=root -qq download "$kernel" busybox-static
