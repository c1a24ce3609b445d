#!/bin/sh
# Debian's chromium, for `make test-console`; its tests are skipped where it cannot be installed.
set -u
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "no chromium: install it (Debian: apt-get install chromium) to run the tests in a browser" >&2
    exit 0
fi
apt-get update --quiet --quiet
apt-get install --yes --quiet --no-install-recommends chromium fonts-wqy-microhei || echo "no chromium: its tests are skipped" >&2
