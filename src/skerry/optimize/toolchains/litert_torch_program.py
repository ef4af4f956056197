"""Run in the litert-torch toolchain: a saved torch.export program in, a float32 .tflite file out.

python -I litert_torch_program.py BORROWED... -- PROGRAM.pt2 MODEL.tflite. BORROWED are the directories where torch is
found; they are searched last. What fails is said as `skerry-error: <element>: <cause>`. Must not live here: an import
of ours; this environment has none of it.
"""

from __future__ import annotations

import re
import sys
import warnings

_OPERATOR = re.compile(r"\b(?:torch\.ops\.)?(?:aten|prims|torchvision)[\w.:]*\.[\w.]+")
_MOST = 300


def main() -> int:
    """Convert; return the exit code."""
    split = sys.argv.index("--")
    sys.path.extend(sys.argv[1:split])
    given, made = sys.argv[split + 1 :]
    warnings.simplefilter("ignore")
    import litert_torch  # noqa: PLC0415 - found only now
    import torch  # noqa: PLC0415 - found only now

    try:
        program = torch.export.load(given)
        arguments, keywords = program.example_inputs
        litert_torch.convert(program.module(), tuple(arguments), dict(keywords)).export(made)
    except Exception as error:  # noqa: BLE001 - the converter's exceptions have no common type
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        found = _OPERATOR.search(str(error))
        element = f"operator {found.group(0)}" if found else "model"
        sys.stderr.write(f"\nskerry-error: {element}: litert-torch cannot convert it ({text[:_MOST]})\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
