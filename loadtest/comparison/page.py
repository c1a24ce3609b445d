"""A comparison as one HTML page that needs nothing else."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest.comparison.figures import AIMS, MEANINGS, table
from loadtest.comparison.pictures import pictures
from loadtest.comparison.stages import Findings

STYLE = (
    "body{font:15px/1.5 system-ui;margin:2em auto;max-width:62em;padding:0 1em}svg{max-width:100%;height:auto}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #8884}code,pre{font-size:85%}pre{overflow:auto}"
)


def write_page(file: Path, document: Mapping[str, Any], servers: Mapping[str, Findings]) -> None:
    parts = [
        f"<!doctype html><meta charset=utf-8><title>fenhe beside others</title><style>{STYLE}</style>",
        f"<h1>fenhe beside others</h1><p>{_machine(document)}</p>",
        _figures(document["figures"]),
        "".join(f"<p>{html.escape(note)}</p>" for note in document["notes"]),
        f"<pre>{html.escape(chr(10).join(table(servers)))}</pre>",
        *(f"<h2>{html.escape(title)}</h2>{svg}" for title, svg in pictures(servers)),
        f"<h2>Servers</h2>{_servers(servers)}",
        f"<h2>Formulas</h2>{_formulas(document['formulas'])}",
    ]
    file.write_text("\n".join(parts), encoding="utf-8")


def _machine(document: Mapping[str, Any]) -> str:
    both = [*document["machine"].items(), *document["versions"].items()]
    return html.escape(", ".join(f"{name} {value}" for name, value in both))


def _figures(found: Mapping[str, float]) -> str:
    rows = "".join(
        f"<tr><td>{name}<td><b>{value:.3g}</b><td>{'' if AIMS.get(name) is None else f'{AIMS[name]:.3g}'}"
        f"<td>{html.escape(MEANINGS.get(name, ''))}"
        for name, value in found.items()
    )
    return f"<table><tr><th>figure<th>value<th>aim<th>meaning{rows}</table>"


def _servers(servers: Mapping[str, Findings]) -> str:
    rows = "".join(
        f"<tr><td>{name}<td>{html.escape(one.absent or one.about)}<td><code>{html.escape(' '.join(one.flags))}</code>"
        for name, one in servers.items()
    )
    return f"<table><tr><th>name<th>what<th>command{rows}</table>"


def _formulas(formulas: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(text)}" for name, text in formulas.items())
    return f"<table>{rows}</table>"
