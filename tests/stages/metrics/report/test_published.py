"""The page of a publication says what was decided and why, and shows two versions side by side."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.metrics.report.published import explained, headline, published_page
from tests.stages.metrics.report.versions import HOSTILE, Version, decision, finished, lineage, report

BETTER = Version()
WORSE = Version(kid=1.0, tokenizer="c" * 64, bits=4.0, config={"steps": 50}, packages={"torch": "2.8"})


def page(tmp_path: Path, new: Version = BETTER, old: Version | None = WORSE, **options: Any) -> str:
    """The page of a new version that was published."""
    evaluation, samples = finished(tmp_path / "new", new)
    incumbent = finished(tmp_path / "old", old) if old else (None, None)
    made = options.pop("made", decision("champion", champion=old))
    return published_page(made, evaluation, incumbent[0], samples, incumbent[1], 7, **options)


def section(html: str, name: str) -> str:
    """The markup of one section."""
    found = re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)
    assert found, name
    return found[0]


def text(markup: str) -> str:
    """What a reader sees of it."""
    return " ".join(re.sub(r"<[^>]+>", " ", markup).split())


def test_the_headline_says_what_happened_to_which_version() -> None:
    assert headline(decision("champion", champion=WORSE), 7) == "Published: version 7 takes over from version 6."
    assert headline(decision("challenger", champion=WORSE), 7) == "Not published: version 6 stays in use."
    assert headline(decision("champion", champion=None), 1) == "Published: version 1 is the first in use."
    assert headline(decision("challenger", champion=None), None) == "Not published: the new version did not pass."


def test_the_explanation_names_the_rule_the_version_and_the_number_of_pictures() -> None:
    failed = explained(decision("challenger", champion=WORSE, kid=(1.2, 1.0)), report(BETTER))
    assert failed == (
        "KID of samples is 1.20 against 1.00 of version 6: the rule failed. Judged on 1,040 held-out pictures."
    )
    made = decision("challenger", champion=WORSE, kid=(1.2, 1.0))
    several = {**made, "rules": [*made["rules"], {**made["rules"][0], "metric": "psnr", "passed": True}]}
    assert "of version 6: 1 of 2 rules failed." in explained(several, report(BETTER))
    passed = explained(decision("champion", champion=WORSE), report(BETTER))
    assert passed.startswith("KID of samples is 0.500 against 1.00 of version 6: the rule passed.")
    assert explained(decision("champion", champion=None), report(BETTER)).startswith("There was no version to compare")


def test_a_rule_whose_figure_is_missing_is_unknown(tmp_path: Path) -> None:
    made = decision("challenger", champion=WORSE, challenger=None)
    assert "KID of samples is unknown against 1.00" in explained(made, report(BETTER))
    assert "✗ failed" in section(page(tmp_path, made=made), "decision")


@pytest.mark.parametrize(
    ("direction", "margin", "words"),
    [
        ("lower", 0.02, "lower by more than 0.0200"),
        ("lower", -0.02, "less than 0.0200 higher"),
        ("higher", 0.0, "higher"),
    ],
)
def test_what_a_rule_requires_is_said_in_words(tmp_path: Path, direction: str, margin: float, words: str) -> None:
    made = decision("champion", champion=WORSE, direction=direction, margin=margin)
    assert f" {words} ✓ passed" in text(section(page(tmp_path, made=made), "decision"))


def test_an_evaluation_of_the_old_version_that_measured_nothing_is_said_to_be_none(tmp_path: Path) -> None:
    evaluation, samples = finished(tmp_path / "new", BETTER)
    made = decision("champion", champion=WORSE)
    html = published_page(made, evaluation, samples, samples, None, 7)  # any artifact without a report
    assert "version 6 was not measured on these held-out pictures" in section(html, "compared")
    assert 'id="changes"' not in html


def test_better_is_said_only_where_intervals_have_nothing_in_common(tmp_path: Path) -> None:
    rows = dict(re.findall(r'<th scope="row" class="what">(.*?) <span.*?>.</span></th>(.*?)</tr>', page(tmp_path)))
    assert "version 7" in text(rows["KID of samples"].rpartition("<td>")[2])
    assert text(rows["Precision of samples"].rpartition("<td>")[2]) == "", "equal"
    assert text(rows["Bits per token, held-out"].rpartition("<td>")[2]) == "", "tokens of different tokenizers"
    assert "KID of other real pictures" not in rows


def test_bits_are_compared_where_the_tokenizer_is_the_same(tmp_path: Path) -> None:
    old = WORSE.model_copy(update={"tokenizer": BETTER.tokenizer})
    html = page(tmp_path, old=old)
    rows = dict(re.findall(r'<th scope="row" class="what">(.*?) <span.*?>.</span></th>(.*?)</tr>', html))
    assert "version 6" in text(rows["Bits per token, held-out"].rpartition("<td>")[2])
    assert "use the same tokenizer" in section(html, "compared-reconstructions")


def test_samples_and_reconstructions_of_both_stand_side_by_side(tmp_path: Path) -> None:
    html = page(tmp_path)
    for version in (7, 6):
        assert html.count(f'alt="version {version}: sample of discs"') == 3
        assert html.count(f'alt="version {version}: its reconstruction"') == 5
    assert html.count('alt="held-out picture"') == 5


def test_reconstructions_of_another_size_are_not_compared(tmp_path: Path) -> None:
    html = page(tmp_path, old=WORSE.model_copy(update={"size": 8}))
    assert "pictures of different size" in section(html, "compared-reconstructions")


def test_samples_without_classes_are_compared_too(tmp_path: Path) -> None:
    html = page(tmp_path, BETTER.model_copy(update={"classes": ()}), WORSE.model_copy(update={"classes": ()}))
    assert html.count('alt="version 6: sample"') == 3


def test_what_changed_is_a_table_of_keys_code_and_packages(tmp_path: Path) -> None:
    changes = text(section(page(tmp_path), "changes"))
    assert "prior.steps 50 100" in changes and "torch 2.8 2.9" in changes
    assert "source" not in changes and "0123abc" not in changes, "these are the same"


def test_the_lineage_of_the_run_that_made_the_old_version_goes_before_that_of_its_evaluation(tmp_path: Path) -> None:
    before = {**lineage(WORSE), "source": "f" * 64}
    assert "source " + "f" * 64 in text(section(page(tmp_path, incumbent_lineage=before), "changes"))


def test_a_lineage_that_nobody_kept_is_said_to_be_unknown(tmp_path: Path) -> None:
    html = page(tmp_path, old=WORSE.model_copy(update={"lineage": False}))
    assert "was not recorded" in section(html, "changes")


def test_the_evaluation_follows_and_the_contents_list_its_sections(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert html.index("Published: version 7") < html.index('id="compared"') < html.index('<section id="cost">')
    assert html.count("<html") == 1 and "before" not in section(html, "cost")
    assert re.findall(r'<li><a href="#(.*?)">', html) == [
        *("decision", "compared", "compared-samples", "compared-reconstructions", "changes", "evaluation", "cost")
    ]


def test_an_evaluation_of_an_earlier_form_is_not_repeated_and_says_so(tmp_path: Path) -> None:
    html = page(tmp_path, BETTER.model_copy(update={"marked": False}))
    assert "--force evaluate" in section(html, "evaluation") and "What it cost" not in html


def test_the_first_version_has_nothing_beside_it(tmp_path: Path) -> None:
    html = page(tmp_path, old=None)
    assert "Published: version 7 is the first in use." in html
    assert 'id="compared' not in html and 'id="changes"' not in html


def test_the_page_is_the_same_bytes_again(tmp_path: Path) -> None:
    assert page(tmp_path / "first") == page(tmp_path / "again")


class Markup(HTMLParser):
    """All elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}


def test_names_that_would_like_to_be_markup_stay_text(tmp_path: Path) -> None:
    hostile = {"classes": HOSTILE, "config": {"<script>": "</style><script>"}, "packages": {"<b>": "<svg onload=x>"}}
    made = {**decision("champion", champion=WORSE), "reasons": list(HOSTILE)}
    html = page(tmp_path, BETTER.model_copy(update=hostile), WORSE.model_copy(update={"classes": HOSTILE}), made=made)
    markup = Markup()
    markup.feed(html)
    assert not markup.tags & {"script", "svg", "iframe", "object", "embed", "link"}
    assert not [name for name in markup.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(&#39;class&#39;)&lt;/script&gt;" in html
    assert html.count("example.org") == html.count("src=http://example.org") == html.count("&lt;img src=http://") > 0


@pytest.mark.parametrize("verdict", ["champion", "challenger"])
def test_the_verdict_is_in_words_not_in_colour_alone(tmp_path: Path, verdict: str) -> None:
    html = page(tmp_path, made=decision(verdict, champion=WORSE))
    title = re.search(r"<h1[^>]*>(.*?)</h1>", html)
    assert title and title[1].startswith("Published" if verdict == "champion" else "Not published")
    assert ("✓ passed" in html) == (verdict == "champion")
