// SPDX-License-Identifier: GPL-2.0

//! Whether the running kernel declares the functions that the module takes the place of as the module
//! expects it (`prototypes` has the list). The build asks the same of the kernel that it is for; but
//! nothing keeps a module from a kernel that was built from other sources under the same name.
//!
//! `prototypes.c` reads it.

use super::{
    bindings,
    btf::{self, Btf},
    error::eopnotsupp, //
};
use core::{
    ffi::c_void,
    ptr::{self, NonNull}, //
};
use kernel::{
    alloc::KVVec,
    prelude::*, //
};

const EXPECTED: &str = include_str!("prototypes");

/// Whether there is a declaration of the function, which ends with a 0.
pub(crate) const fn declares(name: &[u8]) -> bool {
    let text = EXPECTED.as_bytes();
    let mut start = 0;
    while start + name.len() < text.len() {
        let mut i = 0;
        while name[i] != 0 && text[start + i] == name[i] {
            i += 1;
        }
        if name[i] == 0
            && text[start + i] == b'('
            && start > 0
            && matches!(text[start - 1], b' ' | b'*')
        {
            return true;
        }
        start += 1;
    }
    false
}

/// The running kernel's BTF.
///
/// # Invariants
///
/// `data` is the begin of `len` initialised bytes, which are freed with `kvfree`.
struct KernelBtf {
    data: NonNull<c_void>,
    len: usize,
}

impl KernelBtf {
    /// `None` if the kernel has none, or it cannot be read. Sleeps.
    fn read() -> Option<Self> {
        let mut data = ptr::null_mut();
        // SAFETY: The pointer is valid for writes.
        let len = unsafe { bindings::rdax_read_btf(&mut data) };
        // INVARIANT: The function filled the buffer that it made, as far as it tells.
        Some(Self {
            len: usize::try_from(len).ok()?,
            data: NonNull::new(data)?,
        })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: By the type's invariant.
        unsafe { core::slice::from_raw_parts(self.data.as_ptr().cast(), self.len) }
    }
}

impl Drop for KernelBtf {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant; nobody borrows it any more.
        unsafe { bindings::kvfree(self.data.as_ptr()) };
    }
}

/// Compares the running kernel's functions with what is expected. Sleeps.
///
/// Errors: `EOPNOTSUPP` if some are otherwise, with a line for each in the log; `ENOMEM`. A kernel without
/// BTF, or with one of a form that is not known here, passes, with a line.
pub(crate) fn check() -> Result {
    let Some(kernel) = KernelBtf::read() else {
        pr_info!(
            "this kernel has no BTF: its functions were compared when the module was built only\n"
        );
        return Ok(());
    };
    let count = btf::count(kernel.bytes()).unwrap_or(0);
    let mut starts = KVVec::from_elem(0, count, GFP_KERNEL)?;
    let Some(types) = Btf::new(kernel.bytes(), &mut starts).filter(|_| count > 0) else {
        pr_info!("this kernel's BTF is of another form: its functions were not compared\n");
        return Ok(());
    };
    let mut differ = false;
    let compared = types.compare(EXPECTED, &mut |expected, here| {
        differ = true;
        pr_err!(
            "this kernel has {} in place of {}\n",
            here.unwrap_or("no such function, or several,"),
            expected
        );
    });
    if differ || compared.is_none() {
        pr_err!(
            "rdax was built for another kernel than this one (tested: {}) and cannot serve here; build it anew\n",
            env!("RDAX_SERIES")
        );
        return Err(eopnotsupp());
    }
    Ok(())
}
