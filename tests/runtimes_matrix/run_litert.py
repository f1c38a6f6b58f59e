"""Converts FOLDER/program.pt2 for LiteRT and runs it there on FOLDER/call.pt.

    python run_litert.py FOLDER

The call is (arguments, outputs); prints the largest error, relative to the spread of an output.
"""

import sys
from pathlib import Path

import litert_torch
import torch

folder = Path(sys.argv[1])
given, wanted = torch.load(folder / "call.pt")
program = torch.export.load(folder / "program.pt2")
outputs = litert_torch.convert(program.module(), given)(*given)
pairs = zip(outputs, wanted, strict=True)
print(max(float((torch.as_tensor(got) - right).abs().max() / right.std()) for got, right in pairs))
