"""Pages of the site that are not files of this folder, as MkDocs calls for them.

Pages of the repository's root are taken as they are, links between all of them are turned, and the
reference is made from the code: commands, the public API, passes, and the codes of refusals. Links
to sources go to the repository.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

import pass_changes
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Where pages of the root are on the site.
OF_ROOT = {
    "README.md": "index.md",
    "benchmarks.md": "benchmarks.md",
    "coverage.md": "coverage.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
#: Modules whose public names the reference shows, and what each is for.
MODULES = {
    "mla_opt": "Optimize, inspect, verify",
    "mla_opt.runtimes.onnxruntime": "Generate in ONNX Runtime",
    "mla_opt.runtimes.onnxruntime.batching": "Continuous batches",
    "mla_opt.integrations.openai": "OpenAI-compatible server",
    "mla_opt.runtimes.torch": "Generate in PyTorch",
    "mla_opt.bundles": "Folders to ship",
    "mla_opt.kernels": "Kernel libraries",
}
#: Operators that mla-opt writes: what each is, and where its contract is.
WRITTEN = {
    "LatentAttention": ("Attention to latent rows, for absorbed queries.", "contract"),
    "MultiHeadLatentAttention": ("The same with `W_UK` and `W_UV` as stored.", "multi_head"),
    "PrefillCrossover": ("From how many new tokens on a prompt is expanded.", "crossover"),
    "MatMulNBits": ("ONNX Runtime's `MatMulNBits`, with a kernel of its own.", "matmul_nbits"),
}
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root and of the reference."""
    made = {there: (ROOT / here).read_text() for here, there in OF_ROOT.items()}
    made["reference/cli.md"] = _commands()
    made["reference/api.md"] = _api()
    made["reference/passes.md"] = _passes()
    made["reference/refusals.md"] = _refusals()
    made["reference/operators.md"] = _operators(config)
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page."""
    place = page.file.src_uri
    source = {there: here for here, there in OF_ROOT.items()}.get(place, f"docs/{place}")

    def turned(match: re.Match[str]) -> str:
        target, anchor = match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:") or place.startswith("reference/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = OF_ROOT.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if there is None or files.get_file_from_path(there) is None:
            return f"{match[1]}{_in_repository(config, path)}{anchor}{match[4]}"
        link = posixpath.relpath(there, posixpath.dirname(place) or ".")
        return f"{match[1]}{link}{anchor}{match[4]}"

    return LINK.sub(turned, markdown)


def _in_repository(config: MkDocsConfig, path: str) -> str:
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"a page links to {path}, which is not there")
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{config.repo_url}/{kind}/main/{path}"


def _commands() -> str:
    """Every command with its options, as Typer documents them."""
    import typer.main
    from typer.cli import get_docs_for_click

    from mla_opt.cli._app import app

    command: Any = typer.main.get_command(app)
    with command.make_context("mla-opt", [], resilient_parsing=True) as context:
        return str(get_docs_for_click(obj=command, ctx=context, name="mla-opt"))


def _api() -> str:
    parts = ["# Python API"]
    for name, what in MODULES.items():
        parts.append(f"## {what}\n\nModule `{name}`.")
        parts += [f"::: {name}.{each}" for each in _public(name)]
    return "\n\n".join(parts) + "\n"


def _public(module: str) -> list[str]:
    """What a module offers."""
    import importlib

    return sorted(importlib.import_module(module).__all__, key=str.lower)


def _passes() -> str:
    """What each pass does to a graph, in its own words."""
    from mla_opt.passes import BUILT_IN

    changes = pass_changes.changes()
    parts = ["# Passes", "In the order in which they run. Each is one file of `passes/`."]
    for number, name in enumerate(BUILT_IN, 1):
        first, _, rest = _docstring(ROOT / "passes" / f"{name}.py").partition("\n")
        parts.append(f"## {number}. `{name}`\n\n{first}")
        if rest.strip():
            parts.append(f"```text\n{rest.strip(chr(10))}\n```")
        if name in changes:
            parts.append(changes[name])
    return "\n\n".join(parts) + "\n"


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _operators(config: MkDocsConfig) -> str:
    """What operators mean, those of each format that are read, and those that are written."""
    from typing import get_args

    from mla_opt.graphs import operations
    from mla_opt.graphs.onnx.operations import READERS as OF_ONNX
    from mla_opt.graphs.torch.operations import READERS as OF_PYTORCH
    from mla_opt.matching.axis_rules import RULES

    front = (
        "# Operators\n\nAn operator of a graph is read as an operation: what it means, whatever"
        " format it comes from. Operations with a rule may lie between latent rows and keys or"
        " values: the rule says what becomes of sequences, tokens, heads and width, at every size."
        " Others are looked at in places of their own, such as the softmax. What has no reader ends"
        " the search.\n"
    )
    rows = ["| operation | meaning | has a rule |", "|---|---|---|"]
    for each in get_args(operations.Operation):
        meaning = (each.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{each.__name__}` | {meaning} | {'yes' if each in RULES else ''} |")
    onnx = sorted(f"`{name}`" if not domain else f"`{domain}::{name}`" for domain, name in OF_ONNX)
    pytorch = sorted(f"`{name}`" for name in OF_PYTORCH)
    lists = [f"## ONNX\n\n{', '.join(onnx)}", f"## PyTorch (ATen)\n\n{', '.join(pytorch)}"]
    return "\n\n".join([front, "\n".join(rows), *lists, _written(config)]) + "\n"


def _written(config: MkDocsConfig) -> str:
    """The operators of the domain `mla_opt`."""
    rows = ["| operator | what it is | contract |", "|---|---|---|"]
    for name, (what, module) in WRITTEN.items():
        path = f"mla_opt/operator/{module}.py"
        rows.append(f"| `mla_opt::{name}` | {what} | [{path}]({_in_repository(config, path)}) |")
    front = (
        "## Written\n\nOperators of the domain `mla_opt`, with function bodies of what ONNX"
        " Runtime has. In a model that is read, `mla_opt::MatMulNBits` is taken for ONNX Runtime's."
    )
    return "\n\n".join([front, "\n".join(rows)])


def _refusals() -> str:
    """One entry a code: the reasons that go with it, and what would change it."""
    from mla_opt.matching.not_latent import REMEDIES

    front = (
        "# Why was my model not matched?\n\n`mla-opt inspect` and the report name a code for each"
        " attention that was left as it was, and a reason with the nodes that are to blame.\n"
    )
    reasons = _reasons()
    entries = [front]
    for code in sorted({*REMEDIES, *reasons}):
        said = "\n".join(f"- {reason}" for reason in sorted(reasons.get(code, ())))
        remedy = f"What would change it: {REMEDIES[code]}." if code in REMEDIES else ""
        entries.append(f"## `{code}`\n\n{said}\n\n{remedy}\n")
    return "\n".join(entries)


#: Where refusals are made, and at which argument the code is; the reason is behind it.
_REFUSING = {"NotLatentError": 0, "ApartError": 0, "Refusal": 1}


def _reasons() -> dict[str, set[str]]:
    """Every reason that the sources give, by code; what depends on the model is left out."""
    found: dict[str, set[str]] = {}
    for folder in ("mla_opt", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    place = _REFUSING.get(node.func.id)
                    if place is not None and len(node.args) > place + 1:
                        code, reason = map(_words, node.args[place : place + 2])
                        if re.fullmatch("[a-z]+(_[a-z0-9]+)+", code) and reason:
                            found.setdefault(code, set()).add(reason)
    return found


def _words(node: ast.expr) -> str:
    """A text as it is written, with dots for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_words(each) or "..." for each in node.values)
    return ""
