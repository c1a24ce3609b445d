#!/bin/sh
# standin_base.sh FOLDER NAME: where no registry can be reached, a base image made from Debian's packages and tagged with
# the name that a Dockerfile asks for. It is not the official image: its Python is Debian's 3.11, not the latest 3.11.
set -eu
folder=$1 name=$2
mkdir -p "$folder"
if [ ! -e "$folder/base.tar" ]; then
    mmdebstrap --quiet --format=tar --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$folder/base.tar.part"
    mv "$folder/base.tar.part" "$folder/base.tar"
fi
container=$(buildah from scratch)
buildah add -q "$container" "$folder/base.tar" /
buildah commit -q "$container" "$name"
buildah rm "$container" >/dev/null
