"""Every setting as data, from the fields of the tree."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from models.bounds import Bounds
from server.settings.config import ServerConfig, StudentConfig
from server.settings.fields import bare, find_fields, find_sections, flag_of, setting_names, variable_of

FIELDS = {one.name: one for one in find_fields()}


def test_every_setting_has_a_meaning() -> None:
    for setting in (*find_fields(), *find_fields(StudentConfig, "student[].")):
        assert setting.meaning, setting.name


def test_every_section_says_what_it_is_about() -> None:
    sections = find_sections()
    assert all(sections.values())
    assert {"", *sections} == {setting.section for setting in find_fields()}


def test_setting_has_its_type_default_and_bounds() -> None:
    steps = FIELDS["engine.step_tokens"]
    assert (steps.kind, steps.default, steps.bounds) == (int, 512, Bounds(least=4))
    deadline = FIELDS["admission.default_deadline_s"]
    assert (deadline.kind, deadline.default, deadline.bounds) == (float, None, Bounds(above=0))
    assert deadline.unset == "that of --request-timeout-s"


def test_settings_of_one_value_are_listed_in_the_order_of_the_tree() -> None:
    names = setting_names()
    assert names[:2] == ["host", "port"]
    assert names.index("limits.max_body_bytes") < names.index("tracing.enabled")
    tables = {
        "router.min_retention",
        "online_quality.floors",
        "online_quality.floors_under_load",
        "online_quality.pins",
        "router.max_own_perplexity",
        "router.min_information",
        "cache.semantic",
    }
    assert set(setting_names(with_tables=True)) - set(names) == tables
    of_student = setting_names(StudentConfig, "student[0].")
    assert of_student[:4] == ["student[0].folder", "student[0].name", "student[0].tasks", "student[0].engine"]
    assert "student[0].remote.urls" in of_student
    assert "student[0].vllm" in setting_names(StudentConfig, "student[0].", with_tables=True)


def test_setting_has_a_flag_and_a_variable() -> None:
    assert flag_of("limits.max_body_bytes") == "--max-body-bytes"
    assert flag_of("router.fast") == "--router-fast"
    assert variable_of("limits.max_body_bytes") == "FENHE_LIMITS__MAX_BODY_BYTES"


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        (Annotated[int, Meta(ge=1)] | None, int),
        (Annotated[Annotated[Path, Meta(description="x")] | None, Meta(description="y")], Path),
        (ServerConfig, ServerConfig),
        (dict[str, int], dict[str, int]),
    ],
)
def test_bare_type_has_no_bounds_and_no_none(hint: Any, kind: Any) -> None:
    assert bare(hint) == kind
