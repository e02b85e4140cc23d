#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""together.py DIRECTORY NUMBER…

Puts many of the faults of tests/mutants/faults into the checkout in DIRECTORY at once, each to be
switched on by the module's parameter "mutant". Prints the numbers of those for which that can be
done: where statements, conditions or values are replaced by others.
"""

import os
import re
import sys

import records


def balanced(text):
    depth = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            return False
    return depth == 0


def chosen(number, old, new):
    return f"if crate::mutant({number}) {{ {new} }} else {{ {old} }}"


def condition(text):
    m = re.match(r"^((?:\} else )?(?:if|while)) (?!let )(.*) \{$", text)
    return m and balanced(m[2]) and " let " not in f" {m[2]}" and m


def merge(number, old, new):
    """What stands for both, or None."""
    statement = re.compile(r"^(?!let |pub|const |static |use |\.|\||&&)(.|\n)*;$")
    if balanced(old) and statement.match(old):
        if balanced(new) and (not new or statement.match(new)
                              or (new.endswith("}") and not new.startswith("let "))):
            return chosen(number, old, new)
        return None
    let = re.compile(r"^let (mut )?(\w+)(: [^=]+)? = ((?:.|\n)*);$")
    a, b = let.match(old), let.match(new)
    if a and b and a[2] == b[2] and balanced(old) and balanced(new):
        # In brackets, as an expression may begin with a block.
        return f"let {a[1] or ''}{a[2]}{a[3] or ''} = {chosen(number, f'({a[4]})', f'({b[4]})')};"
    other = re.compile(r"^let (\w+\(\w+\)) = (.*) else \{$")
    a, b = other.match(old), other.match(new)
    if a and b and a[1] == b[1] and balanced(a[2]) and balanced(b[2]):
        return f"let {a[1]} = ({chosen(number, a[2], b[2])}) else {{"
    a, b = condition(old), condition(new)
    if a and b and a[1] == b[1]:
        # In brackets, as a condition may begin with a block.
        return f"{a[1]} ({chosen(number, f'({a[2]})', f'({b[2]})')}) {{"
    a = re.match(r"^(\|\||&&) (.*)$", old)
    if a and balanced(a[2]) and "\n" not in old:
        if not new:
            return f"|| !crate::mutant({number}) && ({a[2]})" if a[1] == "||" else \
                f"&& (crate::mutant({number}) || ({a[2]}))"
        b = re.match(r"^(\|\||&&) (.*)$", new)
        if b and b[1] == a[1] and balanced(b[2]):
            return f"{a[1]} ({chosen(number, a[2], b[2])})"
        return None
    arm = re.compile(r"^(.*?)( if (.*?))? => (.*),$")
    a, b = arm.match(old), arm.match(new)
    if a and b and a[1] == b[1] and "\n" not in old:
        if a[4] == b[4] and a[3] and b[3]:
            return f"{a[1]} if ({chosen(number, a[3], b[3])}) => {a[4]},"
        if a[2] == b[2] and balanced(a[4]) and balanced(b[4]):
            return f"{a[1]}{a[2] or ''} => {chosen(number, a[4], b[4])},"
        return None
    field = re.compile(r"^(\w+): (.*),$")
    a, b = field.match(old), field.match(new)
    if a and b and a[1] == b[1] and balanced(a[2]) and balanced(b[2]):
        return f"{a[1]}: {chosen(number, a[2], b[2])},"
    # Parts of something larger, and what is in a table of constants.
    if re.match(r"[.}|&!=<>+*/-]|\(\"|(if|let|while|match|else|for)\b|\w+ = ", old) \
            or not old or not new or new.startswith(".") or " => " in old:
        return None
    if balanced(old) and balanced(new) and old.endswith(",") == new.endswith(",") \
            and not old.endswith(("{", ";")) and not new.endswith(("{", ";")):
        comma = "," if old.endswith(",") else ""
        # In brackets, as more of the expression may follow.
        return f"({chosen(number, old.rstrip(','), new.rstrip(','))}){comma}"
    return None


def put(root, number, record, taken):
    """Whether the fault can be put in beside the others."""
    if record.path in ("rust/entry.rs",) or not record.path.endswith(".rs"):
        return False        # constants
    kinds = "".join(record.kinds)
    m = re.fullmatch(r"( *)(-+)(\+*)( *)", kinds)
    if not m:
        return False
    path = os.path.join(root, record.path)
    with open(path, encoding="utf-8") as f:
        lines = f.read().splitlines()
    places = record.places(lines)
    if len(places) != 1:
        return False        # changed by another
    first = places[0] + len(m[1])
    count = len(m[2])
    old = record.old[len(m[1]):len(m[1]) + count]
    new = record.new[len(m[1]):len(m[1]) + len(m[3])]
    if any("crate::mutant" in line for line in lines[first:first + count]) \
            or any("//" in line for line in old + new):
        return False
    both = merge(number, "\n".join(old), "\n".join(new))
    if both is None:
        return False
    lines[first:first + count] = both.split("\n")
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")
    taken.append(number)
    return True


def edit(root, path, old, new):
    path = os.path.join(root, path)
    with open(path, encoding="utf-8") as f:
        text = f.read()
    assert old in text, path
    with open(path, "w", encoding="utf-8") as f:
        f.write(text.replace(old, new, 1))


def main():
    root, numbers = sys.argv[1], [int(n) for n in sys.argv[2:]]
    every = records.read()
    taken = []
    for number in numbers:
        put(root, number, every[number - 1], taken)
    edit(root, "rust/helpers.c", "void rdax_cond_resched(void)\n", """\
static unsigned int mutant;
module_param(mutant, uint, 0644);

unsigned int rdax_mutant(void)
{
	return READ_ONCE(mutant);
}

void rdax_cond_resched(void)
""")
    edit(root, "rust/helpers.h", "void rdax_cond_resched(void);\n",
         "void rdax_cond_resched(void);\nunsigned int rdax_mutant(void);\n")
    edit(root, "rust/vm/mod.rs", "pub(crate) fn cond_resched() {", """\
pub(crate) fn mutant() -> u32 {
    // SAFETY: Reads a number.
    unsafe { bindings::rdax_mutant() }
}

/// Lets others have the processor.
#[inline]
pub(crate) fn cond_resched() {""")
    edit(root, "rdax_main.rs", "module! {\n", """\
/// Whether a fault is switched on.
#[inline]
pub(crate) fn mutant(number: u32) -> bool {
    kern::vm::mutant() == number
}

module! {
""")
    print(*taken)


if __name__ == "__main__":
    main()
