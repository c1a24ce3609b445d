"""instructor, `/v1/chat/completions`."""

from typing import Any

import instructor

from tests.clients.programs.openai_chat import Person, client_for, user
from tests.clients.programs.program import Result, Target, failure_of, run


def ask(to: Target, prompt: str, mode: instructor.Mode = instructor.Mode.TOOLS, **fields: Any) -> Any:
    client = instructor.from_openai(client_for(to, api_key=fields.pop("api_key", to.key)), mode=mode)
    options = {"model": to.model, "temperature": 0, "max_tokens": 200, "max_retries": 1, **fields}
    return client.chat.completions.create(messages=[user(prompt)], **options)


def structured(to: Target) -> Result:
    """By each of its modes that name the schema to the server, and in parts while the value comes."""
    modes = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)
    values = [ask(to, to.prompts["person"], mode, response_model=Person) for mode in modes]
    parts = ask(to, to.prompts["person"], response_model=instructor.Partial[Person], stream=True)
    values.append(Person.model_validate(list(parts)[-1].model_dump()))
    return {"values": [value.model_dump() for value in values]}


def errors(to: Target) -> Result:
    def failing(prompt: str, **fields: Any) -> Result:
        return failure_of(lambda: ask(to, prompt, response_model=Person, **fields))

    return {
        "unknown_model": failing("hello", model="no-such-model"),
        "wrong_key": failing("hello", api_key="wrong"),
        "too_long": failing(to.prompts["long"]),
        "overloaded": failing(to.prompts["busy"]),
    }


if __name__ == "__main__":
    run({"structured": structured, "errors": errors}, "instructor")
