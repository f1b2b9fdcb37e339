"""Fails where a package has a licence that is not on the list below, or none: reads what `make sbom` writes.

    python scripts/licences.py sbom.json

To add a licence to the list is a decision for whoever answers for the project; a package whose metadata names none has
a line of its own, with what its files say.
"""

import json
import re
import sys
from pathlib import Path

ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib", "ZPL-2.1",
    # Copyleft of the files themselves: they are used as libraries, unchanged, and not part of what we ship.
    "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "MPL-2.0",
}  # fmt: skip
# Names of older metadata. The last part of "License :: OSI Approved :: ..."
CLASSIFIERS = {
    "Academic Free License (AFL)", "Apache Software License", "BSD License", "ISC License (ISCL)", "MIT License",
    "GNU Library or Lesser General Public License (LGPL)", "Mozilla Public License 2.0 (MPL 2.0)",
    "Python Software Foundation License",
}  # fmt: skip
GENERAL = {"License :: OSI Approved", "License :: DFSG approved"}  # say nothing of their own
# Packages whose metadata names no licence of these lists -> the licence in their files.
KNOWN = {
    "antlr4-python3-runtime": "BSD-3-Clause",
    "asttokens": "Apache-2.0",
    "compressed-tensors": "Apache-2.0",
    "deepspeed": "Apache-2.0",
    "intel-cmplr-lib-ur": "Intel EULA for Developer Tools; the CPU engines load it",
    "intel-openmp": "Intel EULA for Developer Tools; the CPU engines load it",
    "kubernetes-validate": "Apache-2.0; tests only",
    "oss-harmony": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "ray": "Apache-2.0",
    "setuptools": "MIT",
    "supervisor": "BSD-derived (Repoze)",
    "tiktoken": "MIT",
    "torchcodec": "BSD-3-Clause",
    "torchvision": "BSD-3-Clause",
    "transformers": "Apache-2.0",
}
_TOKEN = re.compile(r"\(|\)|[^\s()]+(?:\s+WITH\s+[^\s()]+)?")


def is_allowed(expression):
    """Whether an SPDX expression can be met by licences of the list: one side of an OR, both of an AND.

    >>> is_allowed("MIT OR GPL-3.0-only"), is_allowed("MIT AND GPL-3.0-only"), is_allowed("(MIT OR X) AND ISC")
    (True, False, True)
    """
    tokens = _TOKEN.findall(expression)

    def either():
        found = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            found = both() or found
        return found

    def both():
        found = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            found = one() and found
        return found

    def one():
        token = tokens.pop(0) if tokens else ""
        if token != "(":
            return " ".join(token.split()) in ALLOWED
        found = either()
        return tokens[:1] == [")"] and tokens.pop(0) == ")" and found

    return either() and not tokens


def fault(component):
    """What is wrong with the licences of a component of an SBOM; empty where nothing is."""
    named = [
        entry.get("expression") or entry["license"].get("id") or entry["license"].get("name", "")
        for entry in component.get("licenses", [])
    ]
    named = [name for name in named if name not in GENERAL]
    wrong = [
        name
        for name in named
        if not (name.rpartition(" :: ")[2] in CLASSIFIERS if name.startswith("License :: ") else is_allowed(name))
    ]
    vague = not named or wrong == ["License :: Other/Proprietary License"]
    if (vague and component["name"].lower() in KNOWN) or (named and not wrong):
        return ""
    return ", ".join(wrong) or "names no licence"


def main(arguments):
    """Print each package whose licence is not on the list; the exit code is 1 where there is one.

    It is 2 where there is no file to read.
    """
    if len(arguments) != 1:
        print("usage: python scripts/licences.py SBOM.JSON, the file that `make sbom` writes", file=sys.stderr)
        return 2
    try:
        components = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))["components"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{arguments[0]} is no SBOM in CycloneDX's JSON, as `make sbom` writes: {error!r}", file=sys.stderr)
        return 2
    faults = [f"{each['name']} {each.get('version', '')}: {found}" for each in components if (found := fault(each))]
    print("\n".join([*faults, f"{len(components)} packages, {len(faults)} with a licence that is not on the list"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
