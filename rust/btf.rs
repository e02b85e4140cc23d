// SPDX-License-Identifier: GPL-2.0

//! The prototypes of the kernel's functions, from its description of its types (BTF).
//!
//! Used by the module (`prototypes.rs`) and, when it is built, by a program (`check_prototypes.rs`), so
//! that both agree. Whatever the bytes are that it is given, no call here panics or reads beyond them.
//!
//! C header: [`include/uapi/linux/btf.h`](srctree/include/uapi/linux/btf.h)

const MAGIC: u16 = 0xeb9f;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Types within types: more are not followed, so that a circle has an end.
const MAX_DEPTH: u32 = 12;

/// The most declarations that can be compared at once.
const MAX_DECLARATIONS: usize = 64;

/// The types of a kernel.
pub(crate) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where in `types` each begins; the first is `void`, which is not among them.
    starts: &'a [u32],
}

/// One type: the head of its description, and what follows it.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// How many members or parameters it has.
    count: usize,
    /// Another type, or a size.
    of: u32,
    rest: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The type at `start`, and the bytes that its description takes. `None` for a kind that was not known
/// when this was written: then it is not known either where the next one begins.
fn type_at(types: &[u8], start: usize) -> Option<(Type<'_>, usize)> {
    let info = word(types, start.checked_add(4)?)?;
    let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
    let follows = match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
        KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT
        | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
        _ => return None,
    };
    let head = start.checked_add(12)?;
    let found = Type {
        name: word(types, start)?,
        kind,
        count,
        of: word(types, start.checked_add(8)?)?,
        rest: types.get(head..head.checked_add(follows)?)?,
    };
    Some((found, 12 + follows))
}

/// The types and the strings among `data`.
fn sections(data: &[u8]) -> Option<(&[u8], &[u8])> {
    if u16::from_le_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let section = |field: usize| {
        let head = word(data, 4)? as usize;
        let start = head.checked_add(word(data, field)? as usize)?;
        data.get(start..start.checked_add(word(data, field.checked_add(4)?)? as usize)?)
    };
    Some((section(8)?, section(16)?))
}

/// How many types `data` describes, for [`Btf::new`]. `None` if it is not BTF, or has a kind of type that
/// is not known here.
pub(crate) fn count(data: &[u8]) -> Option<usize> {
    let (types, _) = sections(data)?;
    let (mut start, mut count) = (0, 1);
    // Each type takes some bytes, so the end comes.
    while start < types.len() {
        start += type_at(types, start)?.1;
        count += 1;
    }
    Some(count)
}

impl<'a> Btf<'a> {
    /// `starts` has as many elements as [`count`] told. `None` as there.
    pub(crate) fn new(data: &'a [u8], starts: &'a mut [u32]) -> Option<Self> {
        let (types, strings) = sections(data)?;
        let mut start = 0;
        // The number of elements bounds it.
        for place in starts.iter_mut().skip(1) {
            *place = start.try_into().ok()?;
            start += type_at(types, start)?.1;
        }
        Some(Self {
            types,
            strings,
            starts,
        })
    }

    /// `None` for `void`, and for what is not there.
    fn get(&self, id: u32) -> Option<Type<'a>> {
        if id == 0 {
            return None;
        }
        let start = *self.starts.get(id as usize)?;
        Some(type_at(self.types, start as usize)?.0)
    }

    fn string(&self, offset: u32) -> Option<&'a str> {
        let bytes = self.strings.get(offset as usize..)?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        core::str::from_utf8(bytes.get(..end)?).ok()
    }

    /// Compares the functions with `declarations`, one a line (lines that begin with `#` aside). `differs`
    /// is called with each declaration that is not as expected, and with what is there in its place: a
    /// declaration, or nothing if the kernel has no function of the name, or more than one.
    ///
    /// Returns how many were compared; `None` if those are too many.
    pub(crate) fn compare(
        &self,
        declarations: &str,
        differs: &mut dyn FnMut(&str, Option<&str>),
    ) -> Option<usize> {
        let lines = || {
            declarations
                .lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
        };
        let mut found = [(0, 0u32); MAX_DECLARATIONS];
        let found = found.get_mut(..lines().count())?;
        for id in 1..self.starts.len() as u32 {
            let Some(function) = self.get(id).filter(|found| found.kind == KIND_FUNC) else {
                continue;
            };
            let Some(name) = self.string(function.name) else {
                continue;
            };
            for (line, (at, times)) in lines().zip(found.iter_mut()) {
                if name_of(line) == Some(name) {
                    *at = id;
                    *times += 1;
                }
            }
        }
        for (line, &(id, times)) in lines().zip(found.iter()) {
            let mut text = Text::new();
            let here = self
                .get(id)
                .filter(|_| times == 1)
                .and_then(|function| self.declaration(function, &mut text));
            if here.is_none() {
                differs(line, None);
            } else if text.as_str() != line {
                differs(line, Some(text.as_str()));
            }
        }
        Some(found.len())
    }

    fn declaration(&self, function: Type<'_>, text: &mut Text) -> Option<()> {
        let prototype = self.get(function.of)?;
        self.write(prototype.of, text, 0)?;
        text.space()?;
        text.push(self.string(function.name)?)?;
        self.write_parameters(prototype, text, 0)
    }

    fn write_parameters(&self, prototype: Type<'_>, text: &mut Text, depth: u32) -> Option<()> {
        if prototype.kind != KIND_FUNC_PROTO {
            return None;
        }
        text.push("(")?;
        for i in 0..prototype.count {
            if i > 0 {
                text.push(", ")?;
            }
            let (name, id) = (
                word(prototype.rest, 8 * i)?,
                word(prototype.rest, 8 * i + 4)?,
            );
            if name == 0 && id == 0 {
                text.push("...")?;
            } else {
                self.write(id, text, depth + 1)?;
            }
        }
        if prototype.count == 0 {
            text.push("void")?;
        }
        text.push(")")
    }

    fn write(&self, id: u32, text: &mut Text, depth: u32) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        if id == 0 {
            return text.push("void");
        }
        let this = self.get(id)?;
        match this.kind {
            KIND_INT | KIND_TYPEDEF | KIND_FLOAT => text.push(match self.string(this.name)? {
                "long unsigned int" => "unsigned long",
                "long int" => "long",
                "long long unsigned int" => "unsigned long long",
                "long long int" => "long long",
                name => name,
            }),
            KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_FWD => {
                text.push(match this.kind {
                    KIND_UNION => "union ",
                    KIND_ENUM | KIND_ENUM64 => "enum ",
                    _ => "struct ",
                })?;
                text.push(self.string(this.name)?)
            }
            KIND_PTR => match self.get(this.of) {
                Some(function) if function.kind == KIND_FUNC_PROTO => {
                    self.write(function.of, text, depth + 1)?;
                    text.space()?;
                    text.push("(*)")?;
                    self.write_parameters(function, text, depth + 1)
                }
                _ => {
                    self.write(this.of, text, depth + 1)?;
                    text.space()?;
                    text.push("*")
                }
            },
            KIND_CONST | KIND_VOLATILE | KIND_RESTRICT => {
                let word = match this.kind {
                    KIND_CONST => "const",
                    KIND_VOLATILE => "volatile",
                    _ => "restrict",
                };
                // Of a pointer it is said behind it.
                if self.get(this.of).is_some_and(|of| of.kind == KIND_PTR) {
                    self.write(this.of, text, depth + 1)?;
                    return text.push(word);
                }
                text.push(word)?;
                text.push(" ")?;
                self.write(this.of, text, depth + 1)
            }
            // A mark for the kernel's checkers.
            KIND_TYPE_TAG => self.write(this.of, text, depth + 1),
            _ => None,
        }
    }
}

/// The function's name in a declaration.
fn name_of(declaration: &str) -> Option<&str> {
    let (before, _) = declaration.split_once('(')?;
    before.rsplit([' ', '*']).next()
}

/// A declaration while it is written.
struct Text {
    bytes: [u8; 256],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self {
            bytes: [0; 256],
            len: 0,
        }
    }

    fn push(&mut self, text: &str) -> Option<()> {
        let end = self.len.checked_add(text.len())?;
        self.bytes
            .get_mut(self.len..end)?
            .copy_from_slice(text.as_bytes());
        self.len = end;
        Some(())
    }

    /// A space, but none behind a `*`.
    fn space(&mut self) -> Option<()> {
        if self.as_str().ends_with('*') {
            return Some(());
        }
        self.push(" ")
    }

    fn as_str(&self) -> &str {
        self.bytes
            .get(..self.len)
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .unwrap_or("")
    }
}
