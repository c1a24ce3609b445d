"""Whether a value is one that a schema's grammar lets an answer be."""

import json
from functools import cache
from typing import Any

from engines.grammar import GrammarCompiler, json_body
from models.tokenizer import Tokenizer
from tests.server.conftest import make_tokenizer


@cache
def _tools() -> tuple[Tokenizer, GrammarCompiler]:
    tokenizer = make_tokenizer()
    return tokenizer, GrammarCompiler(tokenizer, 258)


def accepts(schema: dict[str, Any], value: Any) -> bool:
    tokenizer, compiler = _tools()
    matcher = compiler.compile(f"start: body\nbody: {json_body(schema)}").matcher()
    for token_id in tokenizer.encode(json.dumps(value)):
        if not matcher.allows(token_id):
            return False
        matcher.advance(token_id)
    return matcher.library.is_accepting()
