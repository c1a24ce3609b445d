#!/bin/sh
# build.sh [VARIANT...]: the images full and slim, or those that are named (full, slim, vllm), with docker, podman or
# buildah, whichever is there first and works. Variables:
#   IMAGE=localhost/fenhe     the name, without a tag
#   BUILDER=podman            which of the three
#   BUILD_OPTIONS="..."       for it: --build-arg PYTHON_IMAGE=mirror.example/python@sha256:..., --pull-never
set -eu
cd "$(dirname "$0")/../.."
image=${IMAGE:-localhost/fenhe}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)

works() {
    case $1 in
        docker) docker info >/dev/null 2>&1 ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

builder=${BUILDER:-}
for one in docker podman buildah; do
    [ -n "$builder" ] || ! works "$one" || builder=$one
done
if [ -z "$builder" ]; then
    echo "there is no docker (with a running engine), podman or buildah here: install one of them" >&2
    exit 1
fi
case $builder in
    docker) build="docker build" ;;
    podman) build="podman build --format docker" ;;
    *) build="buildah bud --format docker" ;;
esac

for variant in "${@:-}"; do
    for target in ${variant:-slim full}; do
        file=deploy/images/Dockerfile
        [ "$target" != vllm ] || file=deploy/images/Dockerfile.vllm
        # shellcheck disable=SC2086  # several words on purpose
        $build ${BUILD_OPTIONS:-} --build-arg VERSION="$version" --build-arg REVISION="$revision" \
            --target "$target" --tag "$image:$version-$target" --file "$file" .
        echo "built $image:$version-$target with $builder"
    done
done
