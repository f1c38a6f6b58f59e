from __future__ import annotations

from pathlib import Path

import pytest

from mla_opt.kernels.building.cuda_build import Built, build_tensorrt
from tests.engines.rtx import SM, headers


@pytest.fixture(scope="session")
def built_plugin(tmp_path_factory) -> Built:
    found = headers()
    assert found is not None
    return build_tensorrt((SM,), tmp_path_factory.mktemp("plugin"), found)


@pytest.fixture(scope="session")
def plugin(built_plugin) -> Path:
    return built_plugin.library
