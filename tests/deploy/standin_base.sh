#!/bin/sh
# standin_base.sh ROOT NAME: where no registry can be reached, a base image made from Debian's packages and tagged with
# the name that a Dockerfile asks for. It is not the official image: its Python is Debian's 3.11, not the latest 3.11.
set -eu
root=$1 name=$2
store="--root $root/store --runroot $root/run --storage-driver overlay"
mkdir -p "$root"
if [ ! -e "$root/base.tar" ]; then
    mmdebstrap --quiet --format=tar --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root/base.tar.part"
    mv "$root/base.tar.part" "$root/base.tar"
fi
# shellcheck disable=SC2086  # several words
container=$(buildah $store from scratch)
buildah $store add -q "$container" "$root/base.tar" /
buildah $store commit -q "$container" "$name"
buildah $store rm "$container" >/dev/null
