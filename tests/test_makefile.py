"""What the targets of the Makefile would run, and what CI makes of them."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def recipe(*arguments: str) -> str:
    """What make would run."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    environ = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([make, "-n", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_serve_takes_another_port() -> None:
    assert recipe("serve", "PORT=8001").rstrip().endswith("fenhe serve --port 8001")
    assert recipe("serve").rstrip().endswith("fenhe serve")


def test_make_help_tells_of_the_port() -> None:
    assert "make serve PORT=8001" in recipe("help")


def test_make_test_takes_a_number_of_processes() -> None:
    assert "-m pytest -n 5 " in recipe("test", "PROCESSES=5")


@pytest.mark.parametrize("name", ["clients", "vllm", "deploy", "browser"])
def test_slower_checks_run_the_tests_of_their_marker(name: str, pytestconfig: pytest.Config) -> None:
    assert f"-m pytest -m {name} " in recipe(f"test-{name}")
    assert any(line.startswith(f"{name}: ") for line in pytestconfig.getini("markers"))


def test_chart_is_tested_with_the_rest_and_fully_by_its_own_target() -> None:
    nowhere = "DEPLOY=nowhere"
    assert "requirements/helm4.txt" in recipe("test", nowhere)
    for name in ("helm3", "helm4", "validate", "checkov", "fleet"):
        assert f"requirements/{name}.txt" in recipe("test-deploy", nowhere)


def test_console_is_built_compared_and_tested_in_a_browser() -> None:
    lines = recipe("test-console")
    assert "tests/console/compare_built.sh" in lines
    assert lines.rstrip().endswith("-m pytest -m browser -rs tests/console")
    assert ("npm run build" in lines) == (shutil.which("npm", path="/usr/bin:/bin") is not None)
    assert recipe("console").rstrip().endswith("npm run build")


def test_serving_needs_no_node() -> None:
    assert "npm" not in recipe("serve")
    assert "npm" not in recipe("test")


def test_images_are_built_by_the_script_with_a_variant() -> None:
    assert recipe("image", "VARIANT=vllm").strip() == "deploy/images/build.sh vllm"


def test_wheel_is_built_by_the_script_with_the_tools_for_it() -> None:
    lines = recipe("wheel", "VENV=nowhere")
    assert 'nowhere/bin/python -m pip install --quiet --editable ".[wheel]"' in lines
    assert lines.rstrip().endswith("PYTHON=nowhere/bin/python deploy/wheel/build.sh dist")
    assert "make wheel " in recipe("help")


def test_debians_packages_are_installed_only_when_asked_for() -> None:
    assert "install_debian.sh" not in recipe("test-deploy")
    assert "install_debian.sh" in recipe("test-deploy", "DEBIAN=1")


def test_large_clients_are_installed_only_when_asked_for() -> None:
    nowhere = ("CLIENTS=nowhere", "NODE_MODULES=nowhere/node_modules")
    assert "requirements/sdk.txt" in recipe("test-clients", *nowhere)
    assert "requirements/load.txt" not in recipe("test-clients", *nowhere)
    assert "requirements/load.txt" in recipe("test-clients", "ALL=1", *nowhere)


def test_make_loadtest_takes_an_address_and_a_workload() -> None:
    assert recipe("loadtest").rstrip().endswith("fenhe loadtest run   --json loadtest.json")
    line = recipe("loadtest", "URL=http://127.0.0.1:9", "WORKLOAD=chat")
    assert "--url http://127.0.0.1:9 --workload chat" in line


RunCi = Callable[..., "subprocess.CompletedProcess[str]"]
MAKE = """#!/bin/sh
echo "made $1"
case "$1" in
    test) exit $STATUS_OF_TEST;;
    test-vllm) exit 3;;
    test-deploy) exec sleep 60;;
esac
"""


@pytest.fixture
def run_ci(tmp_path: Path) -> RunCi:
    """`.ci/run` with a make of which one target fails and one hangs."""
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)

    def run(limit_s: int, status_of_test: int = 0) -> "subprocess.CompletedProcess[str]":
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CI_LIMIT_S": str(limit_s)}
        environ["CI_CHECKS"] = "test-clients test-vllm test-deploy test-browser"
        environ["STATUS_OF_TEST"] = str(status_of_test)
        return subprocess.run([ROOT / ".ci" / "run"], env=environ, capture_output=True, text=True, check=False)

    return run


def made(output: str) -> list[str]:
    return [line.removeprefix("made ") for line in output.splitlines() if line.startswith("made ")]


def test_ci_goes_on_after_a_failure_and_leaves_out_what_takes_too_long(
    run_ci: RunCi,
) -> None:
    done = run_ci(3)
    assert made(done.stdout) == ["test", "test-clients", "test-vllm", "test-deploy"]
    told = [line for line in done.stdout.splitlines() if ":" in line]
    assert told == [
        "left out for want of time: test-deploy (not finished)",
        "left out for want of time: test-browser",
        "failed: test-vllm",
    ]
    assert done.returncode == 1


def test_ci_tests_first_and_stops_when_they_fail(run_ci: RunCi) -> None:
    done = run_ci(60, status_of_test=2)
    assert (made(done.stdout), done.returncode) == (["test"], 2)


def test_ci_without_time_names_all_that_was_left_out(
    run_ci: RunCi,
) -> None:
    done = run_ci(0)
    assert (made(done.stdout), done.returncode) == (["test"], 0)
    assert done.stdout.count("left out") == 4
