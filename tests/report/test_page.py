"""The page of ``mla-opt report``: what it says, what it must not do, and that it is whole."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mla_opt.cost_model import Workload
from mla_opt.errors import InputError
from mla_opt.report import InspectionReport, with_costs
from mla_opt.report.page import Fate, fates, page_data, render
from mla_opt.report.page.document import shown
from mla_opt.report.page.proof import read_proof
from mla_opt.report.plain import to_plain
from tests.report import examples, pages
from tests.report.pages import HOSTILE, Page

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def whole() -> Page:
    """Everything there can be in one page."""
    optimized = replace(examples.inspection(), operators=(examples.operator(0),), attentions=())
    return Page(render(page_data(examples.inspection(), optimized, examples.report())))


def test_it_says_what_was_found_and_what_was_not(whole: Page) -> None:
    assert "3 latent attentions found" in whole.text
    assert "layers 0-2 (3 sites)" in whole.text
    for words in ("query-depends-on-latent", "/layers.3/MatMul", "this is ordinary attention"):
        assert words in whole.text


def test_it_tells_the_proof(whole: Page) -> None:
    assert "worst error" in whole.text
    assert "3.0e-07" in whole.text
    assert "verification passed, 1 outputs and states compared" in whole.text
    assert "Changed inputs and outputs" in whole.text
    assert "100 MB" in whole.text


def test_its_data_is_the_plain_form_of_the_reports(whole: Page) -> None:
    inspection = with_costs(examples.inspection(), Workload())
    assert whole.data["inspection"] == to_plain(inspection)
    assert whole.data["optimization"] == to_plain(examples.report())
    assert InspectionReport.from_json(inspection.to_json()) == inspection


@pytest.mark.parametrize("make", [pages.hostile, lambda: page_data(pages.deep())])
def test_it_is_whole_and_fetches_nothing(make: Callable[[], Any]) -> None:
    page = Page(render(make()))
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "img"), attributes
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), attributes
        assert not [name for name in attributes if name.startswith("on")], attributes
    code = "".join((*page.scripts, *page.styles))
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)\w|\bfetch\(|XMLHttpRequest\(|import\(", code)
    hosts = set(re.findall(r"https?://([^/\"'`\s]+)", code))
    assert hosts <= {"www.w3.org"}  # names of SVG and XML, which nobody opens
    assert len(page.html) < 600_000


def test_a_browser_runs_only_the_scripts_of_the_page() -> None:
    page = Page(render(pages.hostile()))
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv"))
    allowed = re.findall(r"'sha256-([^']+)'", policy or "")
    told = [
        base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in page.scripts
    ]
    assert told
    assert allowed == told
    assert (policy or "").startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in (policy or "")


def test_names_are_shown_and_not_obeyed() -> None:
    page = Page(render(pages.hostile()))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == len(page.scripts) + 1
    assert page.data["inspection"]["attentions"][0]["name"] == HOSTILE
    assert page.text.count("<script>alert(1)</script>") > 15
    assert "{{ 7 * 7 }}" in page.text
    # What turns the direction of writing, or ends a line in a script, is shown as an escape.
    assert "\u202e" not in page.html
    assert "\u2028" not in page.html
    assert "\\u202e" in page.text


def test_names_that_are_no_text() -> None:
    assert shown("a\udcffb\x00") == "a\\udcffb\\x00"
    assert shown("größe 注意") == "größe 注意"


def test_layers_that_are_alike_are_told_once() -> None:
    page = Page(render(page_data(pages.deep())))
    assert "layers 0-60 (61 sites)" in page.text
    assert "61 latent attentions" in page.text
    assert "5 MB -> 70.3 kB (71.1x less)" in page.text
    assert len(page.data["layers"]) == 1


@pytest.mark.parametrize(
    ("attentions", "words"),
    [
        ((), "No attention was found"),
        (examples.inspection().attentions[3:], "None of the 1 attentions is latent"),
    ],
)
def test_where_nothing_matched(attentions: Any, words: str) -> None:
    page = Page(render(page_data(InspectionReport(attentions))))
    assert words in page.text
    assert "Step time" not in page.text
    assert ("query-depends-on-latent" in page.text) == bool(attentions)


def test_figures_that_are_not_known_are_not_made_up() -> None:
    """What 8 bits and their scales take, the operator alone does not tell."""
    codes = examples.operator(0, cache="packed", cache_dtype="int8")
    optimized = InspectionReport((), examples.model_file("o.onnx"), operators=(codes,))
    page = Page(render(page_data(examples.inspection(), optimized)))
    assert "not known" in page.text
    assert "Give it as --from-report FILE.json" in page.text


def test_a_drawing_leads_from_the_query_and_the_rows_to_the_output() -> None:
    alike = page_data(pages.mixed()).layers
    for layer in alike:
        for drawing in (layer.drawing_before, *layer.drawings_after):
            keys = {box.key for box in drawing.boxes}
            assert len(keys) == len(drawing.boxes)
            assert {key for arrow in drawing.arrows for key in arrow} == keys
            (form,) = (each for each in layer.forms if each.form == drawing.form)
            drawn = {box.stage for box in drawing.boxes if box.stage}
            assert drawn == {stage.name for stage in form.stages}
    sizes = {box.key: box.bytes for box in alike[1].drawing_before.boxes}
    at = Workload(2, 1, 8192)
    assert sizes["keys"] is not None
    assert sizes["keys"].at(at) == 2 * 8192 * 2 * 40960
    narrow = {box.key: box.bytes for box in alike[2].drawing_before.boxes}
    assert narrow["input"] is None  # the graph does not tell its width


def test_what_became_of_an_attention() -> None:
    inspection, name = examples.inspection(), "model.layers.0.self_attn"
    assert fates(inspection)[name] == Fate("factored", "auto", 4 * 576, "default")

    halved = examples.operator(0, cache_dtype="float16", form="fold-q", prefill_threshold=None)
    optimized = InspectionReport((), operators=(halved,))
    told = fates(inspection, optimized)
    assert told[name] == Fate("fold-q", "absorbed", 2 * 576, "model")
    assert told["model.layers.1.self_attn"] == Fate("expanded", "expanded", 4 * 576, "model")

    site = replace(examples.site(0, family="latent"), form="none", cache_bytes_per_token_after=640)
    report = replace(examples.report(), sites=(site,))
    assert fates(inspection, optimized, report)[name] == Fate("expanded", "auto", 640, "report")


def test_a_verification_of_any_form_can_be_read() -> None:
    odd: Any = {"outputs": {"name": 1}, "controls": [3, {"applicable": 1}], "failures": "no"}
    proof = read_proof(odd)
    assert proof.outputs == ()
    assert proof.failures == ()
    assert [control.verdict for control in proof.controls] == ["NOT noticed: "]
    (output,) = read_proof({"outputs": [{"relative": True, "tolerance": "1"}]}).outputs
    assert output.error is None
    assert not output.passed


def test_without_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install jinja2"):
        render(page_data(examples.inspection()))
