#!/bin/sh
# What Debian has of the programs that `make test-deploy` needs: building and running images, proxies, Prometheus.
# Programs that are there already are left alone.
set -eu
missing=""
for pair in buildah:buildah podman:podman runc:runc mmdebstrap:mmdebstrap prometheus:prometheus \
    prometheus-alertmanager:prometheus-alertmanager haproxy:haproxy nginx:nginx-light; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing:$missing; as root on Debian this script installs them" >&2
    exit 1
fi
apt-get update -qq
# RUNLEVEL=1 keeps services from being started: tests start what they need, on ports of their own.
# shellcheck disable=SC2086  # several packages
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $missing
