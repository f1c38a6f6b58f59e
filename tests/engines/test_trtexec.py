"""What docs/tensorrt.md tells to type, against what is known of the tools that are not here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mla_opt.engines import build
from mla_opt.kernels.building.cuda_build import TENSORRT_LIBRARY_NAME

PAGE = (Path(__file__).parents[2] / "docs" / "tensorrt.md").read_text()
# trtexec's own, by samples/common/sampleOptions.cpp of TensorRT 10. It refuses all others.
KNOWN = {
    "--dynamicPlugins",
    "--maxShapes",
    "--minShapes",
    "--onnx",
    "--optShapes",
    "--preview",
    "--saveEngine",
    "--setPluginsToSerialize",
    "--stronglyTyped",
}


@pytest.fixture(scope="module")
def commands() -> list[dict[str, str]]:
    """Options of each trtexec command, by name."""
    blocks = re.findall(r"```sh\n(trtexec .*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    told = re.split(r"^trtexec", blocks[0], flags=re.MULTILINE)[1:]
    assert len(told) == 2
    return [dict(re.findall(r"(--\w+)=?(\S*)", text)) for text in told]


def test_trtexec_knows_its_options(commands):
    assert {name for options in commands for name in options} == KNOWN


def test_the_preview_feature_is_the_one_that_a_build_turns_on(commands):
    said = commands[0]["--preview"]
    assert said == "+aliasedPluginIO1003"
    source = Path(build.__file__).read_text()
    (turned_on,) = re.findall(r"PreviewFeature\.(\w+)", source)
    assert turned_on.replace("_", "").lower() == said[1:].lower()


def test_the_plugin_has_the_name_that_build_kernels_gives_it(commands):
    names = (commands[0]["--dynamicPlugins"], commands[1]["--setPluginsToSerialize"])
    assert set(names) == {TENSORRT_LIBRARY_NAME}
