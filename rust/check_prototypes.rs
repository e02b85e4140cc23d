// SPDX-License-Identifier: GPL-2.0

//! A program that the build runs: `check_prototypes DECLARATIONS KERNEL SERIES TESTED…` compares the
//! declarations in the file with the BTF of the kernel (an ELF file, or BTF itself), and says of a
//! kernel of a series that is not among those tested how it came out.

#[path = "btf.rs"]
mod btf;

use std::{
    env,
    fs,
    process::ExitCode, //
};

/// The section `.BTF` of a 64-bit ELF file; `None` if it has none.
fn section_of_elf(file: &[u8]) -> Option<&[u8]> {
    let number = |at: usize, bytes: usize| {
        let bytes = file.get(at..at.checked_add(bytes)?)?;
        let number = bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        usize::try_from(number).ok()
    };
    let headers = number(40, 8)?;
    let header = |i: usize| headers.checked_add(i.checked_mul(64)?);
    let content = |i: usize| {
        let (start, size) = (number(header(i)? + 24, 8)?, number(header(i)? + 32, 8)?);
        file.get(start..start.checked_add(size)?)
    };
    let names = content(number(62, 2)?)?;
    (0..number(60, 2)?)
        .find(|&i| {
            let name = header(i).and_then(|at| number(at, 4));
            name.and_then(|at| names.get(at..))
                .is_some_and(|name| name.starts_with(b".BTF\0"))
        })
        .and_then(content)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [declarations, kernel, series, tested @ ..] = arguments.as_slice() else {
        eprintln!("usage: check_prototypes DECLARATIONS KERNEL SERIES TESTED...");
        return ExitCode::from(2);
    };
    let (expected, file) = match (fs::read_to_string(declarations), fs::read(kernel)) {
        (Ok(expected), Ok(file)) => (expected, file),
        (expected, file) => {
            for (name, error) in [(declarations, expected.err()), (kernel, file.err())] {
                if let Some(error) = error {
                    eprintln!("rdax: {name}: {error}");
                }
            }
            return ExitCode::from(2);
        }
    };
    let untested = !tested.contains(series);
    let about = format!(
        "not tested with series {series} (but with {})",
        tested.join(" and ")
    );
    let data = if file.starts_with(b"\x7fELF") {
        section_of_elf(&file)
    } else {
        Some(file.as_slice())
    };
    let Some(data) = data else {
        if untested {
            eprintln!("rdax: {about}, and this kernel has no BTF to compare its functions by");
        }
        return ExitCode::SUCCESS;
    };
    let mut starts = vec![0; btf::count(data).unwrap_or(0)];
    let Some(types) = (!starts.is_empty())
        .then(|| btf::Btf::new(data, &mut starts))
        .flatten()
    else {
        eprintln!("rdax: {kernel}: this kernel's BTF is not understood, so its functions were not compared");
        return ExitCode::SUCCESS;
    };
    let mut differ = 0;
    let compared = types.compare(&expected, &mut |expected, here| {
        differ += 1;
        eprintln!("rdax: expected:    {expected}");
        eprintln!(
            "rdax: this kernel: {}",
            here.unwrap_or("has no such function, or several")
        );
    });
    let Some(compared) = compared else {
        eprintln!("rdax: {declarations}: too many declarations");
        return ExitCode::from(2);
    };
    if differ > 0 {
        eprintln!(
            "rdax: {differ} of {compared} functions that the module takes the place of are not as expected: it \
             cannot serve on this kernel{}",
            if untested { format!("; it is {about}") } else { String::new() }
        );
        return ExitCode::FAILURE;
    }
    if untested {
        eprintln!("rdax: {about}: the {compared} functions it takes the place of are as expected");
    }
    ExitCode::SUCCESS
}
