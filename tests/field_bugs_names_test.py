"""The tests that docs/field-bugs.md names are there.

    field_bugs_names_test.py <docs/field-bugs.md> <test program>...
"""

import re
import subprocess
import sys


def listed_tests(program):
    """(suite, test) of each test, with its parameter."""
    text = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True, check=True)
    suite = ""
    for line in text.stdout.splitlines():
        name = line.split("#")[0].rstrip()
        if name.endswith("."):
            suite = name[:-1].split("/")[-1]
        elif name.startswith("  "):
            yield suite, name.strip()


def named_tests(table):
    """(suite, test) as the table names them: `Suite.test`, `.test` of the suite before, `Suite`."""
    suite = ""
    for name in re.findall(r"`(\w*\.?\w+)`", table):
        before, _, test = name.rpartition(".")
        if not before and "." not in name:
            if name[0].isupper():
                suite = name
                yield suite, ""
            continue
        suite = before or suite
        yield suite, test


def main(document, *programs):
    there = [test for program in programs for test in listed_tests(program)]
    rows = [line for line in open(document, encoding="utf-8") if line.startswith("| ")]
    missing = []
    for suite, test in named_tests(" ".join(row.split(" | ")[-1] for row in rows)):
        pattern = re.compile(rf"(^|/){test}($|/|__)") if test else re.compile("")
        if not any(s == suite and pattern.search(t) for s, t in there):
            missing.append(f"{suite}.{test}")
    if missing:
        sys.exit("no such test: " + ", ".join(missing))


if __name__ == "__main__":
    main(*sys.argv[1:])
