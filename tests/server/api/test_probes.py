"""Health, readiness, progress, version, models and tokenisation."""

import pytest

from tests.server.conftest import Served, Start


def test_health_is_well_while_loading(start: Start) -> None:
    served = start(is_loaded=False)
    assert served.http.get("/health").json() == {"status": "ok", "error": None}
    assert served.http.get("/startup").status_code == 200


def test_ready_waits_for_the_default_path(start: Start) -> None:
    served = start(is_loaded=False)
    served.engine.load(3)
    response = served.http.get("/readyz")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    body = response.json()
    assert body["status"] == "loading"
    assert [(path["path"], path["is_servable"]) for path in body["paths"]] == [("shallow", True), ("full", False)]
    assert [student["loaded_share"] for student in body["students"]] == [0.6]
    served.engine.load(5)
    assert served.http.get("/readyz").status_code == 200


def test_unhealthy_engine_shows_in_every_probe(start: Start) -> None:
    served = start()
    served.engine.sicken("two steps failed")
    assert served.http.get("/health").status_code == 503
    assert served.http.get("/readyz").json()["error"] == "two steps failed"
    assert served.chat("hello").status_code == 503
    assert served.http.get("/startup").json()["status"] == "unhealthy"


def test_version_names_the_student(served: Served) -> None:
    body = served.http.get("/version").json()
    assert (body["student"], body["variant"], body["head"]) == ("tiny", "scripted", "exact")
    assert body["version"]


def test_models_lists_every_path_honestly(start: Start) -> None:
    served = start(is_loaded=False)
    served.engine.load(3)
    models = {model.id: model for model in served.client.models.list().data}
    assert list(models) == ["auto", "tiny", "tiny:shallow", "tiny:full"]
    shallow, full = (models[name].model_dump()["fenhe"] for name in ("tiny:shallow", "tiny"))
    assert (shallow["modules"], shallow["share_of_layers"], shallow["is_loaded"]) == (["knowledge"], 0.4, True)
    assert (full["share_of_layers"], full["is_loaded"], full["num_loaded_stages"]) == (1.0, False, 3)
    assert [figure["cross_entropy"] for figure in full["quality"]] == [2.3]
    assert shallow["quality"] == []
    assert (full["width"], shallow["width"]) == (None, None)


def test_models_shows_one(served: Served) -> None:
    assert served.client.models.retrieve("tiny:shallow").id == "tiny:shallow"
    response = served.http.get("/v1/models/other/name")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_tokenize_and_back(served: Served) -> None:
    body = served.post("/tokenize", {"prompt": "hé", "return_token_strs": True}).json()
    told = ["h", r"bytes:\xc3", r"bytes:\xa9"]
    assert body == {"count": 3, "max_model_len": 512, "tokens": [104, 195, 169], "token_strs": told}
    assert served.post("/detokenize", {"tokens": body["tokens"]}).json() == {"prompt": "hé"}


def test_tokenize_renders_messages(served: Served) -> None:
    message = {"role": "user", "content": "x"}
    with_prompt = served.post("/tokenize", {"messages": [message]}).json()
    without = served.post("/tokenize", {"messages": [message], "add_generation_prompt": False}).json()
    assert with_prompt["token_strs"] is None
    assert with_prompt["count"] > without["count"]


@pytest.mark.parametrize("body", [{}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}])
def test_tokenize_wants_exactly_one_text(served: Served, body: dict[str, object]) -> None:
    assert served.post("/tokenize", body).status_code == 400


def test_detokenize_refuses_unknown_ids(served: Served) -> None:
    assert served.post("/detokenize", {"tokens": [1, 999]}).json()["error"]["param"] == "tokens"


def test_long_text_is_tokenised_whole(served: Served) -> None:
    assert served.post("/tokenize", {"prompt": "x" * 20_000}).json()["count"] == 20_000
