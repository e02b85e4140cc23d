// SPDX-License-Identifier: GPL-2.0

//! Directories in configfs that can be kept from being removed.
//!
//! C header: [`include/linux/configfs.h`](srctree/include/linux/configfs.h)

use super::bindings;
use core::{
    ffi::CStr,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    configfs::{
        Group,
        HasGroup,
        ItemType, //
    },
    error::to_result,
    prelude::*,
    str::CString,
    sync::atomic::{Acquire, Atomic, Release},
    sync::Arc, //
};

/// The data of a directory that knows its directory.
///
/// # Invariants
///
/// It lies in a [`Group`], and once that was initialised `item` points to the group's item.
#[pin_data]
pub(crate) struct Directory<T> {
    item: Arc<Atomic<*mut bindings::config_item>>,
    #[pin]
    data: T,
}

impl<T: 'static> Directory<T> {
    /// A directory of this name and kind with `data`.
    pub(crate) fn group(
        name: &CStr,
        kind: &'static ItemType<Group<Self>, Self>,
        data: impl PinInit<T, Error>,
    ) -> Result<impl PinInit<Group<Self>, Error>> {
        let item = Arc::new(Atomic::new(ptr::null_mut()), GFP_KERNEL)?;
        let name = CString::try_from(name)?;
        let own_item = item.clone();
        let content = try_pin_init!(Self {
            item: own_item,
            data <- data,
        });
        // INVARIANT: The item is that of the group that the value lies in.
        Ok(Group::new(name, kind, content).pin_chain(move |group| {
            // SAFETY: The group is initialised.
            let group = unsafe { Group::group(ptr::from_ref(&*group)) };
            // SAFETY: As above; this points to a field of it.
            let own = unsafe { &raw const (*group).cg_item };
            // SAFETY: The item is that of a directory which nobody can look into yet.
            unsafe { let_all_read(own) };
            // Pairs with `depend`: whoever has the item may use it.
            item.store(own.cast_mut(), Release);
            Ok(())
        }))
    }

    /// The data.
    pub(crate) fn data(&self) -> &T {
        &self.data
    }

    /// Keeps the directory: `rmdir` fails with `EBUSY` while the result lives. To be called while
    /// one of the directory's attributes is read or written. Does not sleep.
    ///
    /// Errors: `ENOENT` if the directory is being removed already.
    pub(crate) fn keep(&self) -> Result<Kept> {
        // Pairs with `new`.
        let item = NonNull::new(self.item.load(Acquire)).ok_or(ENOENT)?;
        // SAFETY: By the type invariant the item is alive as long as `self`. The parent of a
        // directory that can be reached is a group of the subsystem, and the subsystem is not
        // unregistered while it has directories.
        unsafe {
            let parent = (*item.as_ptr()).ci_group;
            to_result(bindings::configfs_depend_item_unlocked(
                (*parent).cg_subsys,
                item.as_ptr(),
            ))?;
        }
        Ok(Kept(item))
    }
}

/// Has everybody read the attributes of a directory, and those of its kind that are made later. The kernel crate
/// lets root and its group only; the directories have nothing to hide.
///
/// # Safety
///
/// The item is valid and has a kind, with a list of attributes that the kernel crate has made, and configfs
/// has made no files of the list for this item yet.
unsafe fn let_all_read(item: *const bindings::config_item) {
    const READ: u16 = 0o444;
    const WRITE: u16 = 0o200;

    // SAFETY: By the function's requirements; the list ends with NULL. The attributes are in memory that may be
    // written to, as they are `Opaque`. The mode is one word, which who makes files of another item reads
    // as a whole, or writes in the same way.
    unsafe {
        let mut next = (*(*item).ci_type).ct_attrs;
        // Ends with the list.
        while let Some(attribute) = NonNull::new(*next) {
            let attribute = attribute.as_ptr();
            let mode = match (*attribute).store {
                Some(_) => READ | WRITE,
                None => READ,
            };
            (&raw mut (*attribute).ca_mode).write_volatile(mode);
            next = next.add(1);
        }
    }
}

/// A directory that is kept.
///
/// # Invariants
///
/// The item is depended on, once, on behalf of this value.
#[must_use]
pub(crate) struct Kept(NonNull<bindings::config_item>);

// SAFETY: Who ends the dependence is of no importance.
unsafe impl Send for Kept {}

// SAFETY: There is nothing that could be done with a reference.
unsafe impl Sync for Kept {}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and the item exists as long as it is depended on.
        unsafe { bindings::configfs_undepend_item(self.0.as_ptr()) };
    }
}
