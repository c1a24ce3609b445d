"""What became of the rows, in numbers."""

from models.distill.data.examples import Example
from models.distill.data.report import DataReport, report_of
from models.distill.data.rows import Row, Tally


def row(task: str, source: str) -> Row:
    return Row(task=task, prompt="p", source=source, licence="MIT")


def example(task: str, num_tokens: int, num_prompt_tokens: int) -> Example:
    return Example(task=task, token_ids=(7,) * num_tokens, num_prompt_tokens=num_prompt_tokens, source=f"{task} set")


def report() -> DataReport:
    return report_of(
        read=[row("math", "math set")] * 1200 + [row("legal", "legal set")] * 3,
        dropped=[Tally({("math", "duplicate"): 4}), Tally({("math", "duplicate"): 1, ("math", "empty prompt"): 2})],
        held_out=[row("math", "math set")] * 10,
        examples=[example("math", 30, 20), example("math", 12, 10)],
    )


def test_report_counts_by_task() -> None:
    legal, math = report().tasks
    assert (math.task, math.num_read, math.num_held_out, math.num_examples) == ("math", 1200, 10, 2)
    assert dict(math.dropped) == {"duplicate": 5, "empty prompt": 2}
    assert (math.num_tokens, math.num_answer_tokens) == (42, 12)
    assert (legal.task, legal.num_read, legal.num_examples, dict(legal.dropped)) == ("legal", 3, 0, {})


def test_report_names_the_sources_of_what_is_trained_on() -> None:
    assert report().sources == (("math set", "MIT"),)


def test_report_text_is_a_table_with_the_reasons_below() -> None:
    assert report().text().splitlines() == [
        "task    read  dropped  held out  examples  tokens  answer tokens",
        "legal      3        0         0         0       0              0",
        "math   1,200        7        10         2      42             12",
        "total  1,203        7        10         2      42             12",
        "dropped from math: 5 duplicate, 2 empty prompt",
    ]
