// SPDX-License-Identifier: GPL-2.0

//! Where a call is sent: what ftrace calls at the entry of each redirected function.

use super::{
    answer::{
        answer,
        ANSWER, //
    },
    eviction,
    original::{
        is_calling_original,
        is_ending, //
    },
    Key,
    Redirection,
    Route, //
};
use crate::kern::{
    bindings,
    members::Members,
    memory,
    once::Once,
    page::DevFolio, //
};
#[cfg(RDAX_TEST)]
use core::ffi::CStr;
use core::ptr::{
    self,
    NonNull, //
};
#[cfg(RDAX_TEST)]
use kernel::types::Opaque;
use kernel::{
    ffi::{
        c_ulong,
        c_void, //
    },
    sync::rcu, //
};

/// The flags of a change of protection that userfaultfd wants.
const USERFAULT_CHANGES: c_ulong = bindings::MM_CP_USERFAULT;

/// The slow path of `rdax_direct_call`: another device is in the slot where the call's device would be.
///
/// # Safety
///
/// `members` is a [`Members`].
#[no_mangle]
unsafe extern "C" fn rdax_is_member(members: *const c_void, bdev: *const c_void) -> bool {
    // SAFETY: By the function's requirements.
    unsafe { &*members.cast::<Members>() }.has_device(bdev.cast())
}

/// The answer for a folio without a file: no entry was locked.
extern "C" fn no_entry() -> c_ulong {
    0
}

/// Called by ftrace at the entry of every function of the table. Every fault, read and write of
/// every DAX file comes through here, so it takes no lock, allocates nothing and calls nobody
/// (but for folios, which come here only when memory has failed).
///
/// # Safety
///
/// To be called by ftrace only, for an `ops` that [`Redirection::register`] set up.
pub(super) unsafe extern "C" fn callback(
    ip: c_ulong,
    _parent_ip: c_ulong,
    ops: *mut bindings::ftrace_ops,
    regs: *mut bindings::ftrace_regs,
) {
    // SAFETY: `private` was set to a `Redirection` in static memory.
    let this = unsafe { &*(*ops).private.cast::<Redirection>() };
    let mut routes = this.routes.iter();
    let Some(route) = routes.find(|route| route.entry.read_once() == ip) else {
        return;
    };

    // With DYNAMIC_FTRACE_WITH_ARGS on x86, `ftrace_regs` is a `pt_regs` with the registers in it
    // that carry arguments, and the instruction pointer may be written.
    let regs = regs.cast::<bindings::pt_regs>();
    // SAFETY: ftrace passes the registers of the call. By the requirements of `Target::new`, the
    // argument that the key is about is a valid pointer to what it says. A file, an inode and a superblock
    // are alive while a function is called for them.
    let ours = unsafe {
        let first = (*regs).di;
        let inode = match route.key {
            Key::VmFault => {
                let vmf = first as *const bindings::vm_fault;
                (*(*(*(*vmf).__bindgen_anon_1.vma).vm_file).f_mapping).host
            }
            Key::Kiocb => {
                let iocb = first as *const bindings::kiocb;
                (*(*(*iocb).ki_filp).f_mapping).host
            }
            Key::Vma | Key::SixthVma | Key::ProtectedVma | Key::SplitVma | Key::ZappedVma => {
                let vma = match route.key {
                    Key::ZappedVma => (*regs).si,
                    Key::SixthVma => (*regs).r9,
                    Key::ProtectedVma
                        if (*regs).r9 & USERFAULT_CHANGES == 0
                            && (*regs).r8 & bindings::PAGE_PRESENT != 0 =>
                    {
                        return
                    }
                    Key::ProtectedVma => (*regs).si,
                    _ => first,
                };
                let file = (*(vma as *const bindings::vm_area_struct)).vm_file;
                if file.is_null() {
                    return;
                }
                let host = (*(*file).f_mapping).host;
                // The function is not one of DAX alone.
                if host.is_null() || (*host).i_flags & bindings::S_DAX == 0 {
                    return;
                }
                host
            }
            Key::Inode => first as *mut bindings::inode,
            Key::AnyInode | Key::AnyMapping => {
                let inode = match route.key {
                    Key::AnyMapping => (*(first as *const bindings::address_space)).host,
                    _ => first as *mut bindings::inode,
                };
                if inode.is_null() || (*inode).i_flags & bindings::S_DAX == 0 {
                    return;
                }
                inode
            }
            Key::Evicted | Key::Truncated => {
                let inode = match route.key {
                    Key::Truncated => (*(first as *const bindings::address_space)).host,
                    _ => first as *mut bindings::inode,
                };
                if route.key == Key::Evicted {
                    eviction::note(inode);
                }
                if inode.is_null()
                    || (*inode).i_flags & bindings::S_DAX == 0
                    // Nodes that were made for an entry before memory ran out are no entry, and
                    // nobody removes it.
                    || (*inode).i_data.nrpages == 0
                    || (*(*inode).i_sb).s_flags & bindings::SB_ACTIVE as c_ulong == 0
                    || route.key == Key::Evicted && is_calling_original()
                {
                    return;
                }
                inode
            }
            Key::Mapping => {
                if ANSWER.is_for(ip, first) {
                    (*regs).ip = answer as *const () as c_ulong;
                    return;
                }
                (*(first as *const bindings::address_space)).host
            }
            Key::Folio | Key::LockedFolio => return this.redirect_folio(route, regs),
            Key::BlockDevice | Key::DaxDevice => return this.redirect_device(route, regs),
            Key::Member => {
                let bdev = first as *const bindings::block_device;
                if this.members.has_device(bdev) && !is_calling_original() {
                    (*regs).ip = route.replacement as c_ulong;
                }
                return;
            }
            Key::Active => {
                // Which reference is the last one only who puts it can tell.
                let sb = first as *const bindings::super_block;
                if this.members.has(sb) && !is_ending(sb) {
                    (*regs).ip = route.replacement as c_ulong;
                }
                return;
            }
            Key::Mm => {
                (*regs).ip = route.replacement as c_ulong;
                return;
            }
            Key::ClearedPud => {
                if !bindings::rdax_pud_is_broken(first as *mut bindings::pud_t) {
                    (*regs).ip = route.replacement as c_ulong;
                }
                return;
            }
            Key::Error | Key::Unmount => return this.note(route, regs),
        };
        !inode.is_null() && this.members.has((*inode).i_sb)
    };
    if ours {
        // SAFETY: As above; ftrace goes on at the address that it finds here.
        unsafe { (*regs).ip = route.replacement as c_ulong };
    }
}

impl Redirection {
    /// The callback's part for devices, which are seldom asked about.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of a call of the function, whose first argument is a device.
    #[cold]
    unsafe fn redirect_device(&self, route: &Route, regs: *mut bindings::pt_regs) {
        if is_calling_original() || route.key == Key::BlockDevice && !memory::is_watched() {
            return;
        }
        // SAFETY: ftrace goes on at the address that it finds here.
        unsafe { (*regs).ip = route.replacement as c_ulong };
    }

    /// The callback's part for calls that are only watched: what a filesystem says of itself.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of a call of the function, whose first argument is a superblock.
    #[cold]
    unsafe fn note(&self, route: &Route, regs: *const bindings::pt_regs) {
        // SAFETY: By the function's requirements.
        unsafe {
            let sb = (*regs).di as *const bindings::super_block;
            if route.key == Key::Unmount {
                self.members.set_error(sb, false);
            } else if (*regs).dx as u32 == bindings::fserror_type_FSERR_METADATA
                && (*sb).s_flags & bindings::SB_ACTIVE as c_ulong != 0
            {
                // A shutdown is one.
                self.members.set_error(sb, true);
            }
        }
    }

    /// The callback's part for folios.
    ///
    /// # Safety
    ///
    /// `regs` are the registers of a call of the function, whose first argument is a folio.
    #[cold]
    unsafe fn redirect_folio(&self, route: &Route, regs: *mut bindings::pt_regs) {
        // SAFETY: By the function's requirements.
        let destination = match unsafe { self.has_folio((*regs).di as *const bindings::folio) } {
            Some(true) => route.replacement,
            Some(false) => return,
            // Both implementations would answer this at this moment. If the call went on to the kernel's,
            // the folio could meanwhile come to belong to a file of an adopted device.
            None if route.key == Key::Folio => no_entry as *const (),
            None => return,
        };
        // SAFETY: As above; ftrace goes on at the address that it finds here.
        unsafe { (*regs).ip = destination as c_ulong };
    }

    /// Whether the folio is in a file of ours; `None` if it is in none.
    ///
    /// # Safety
    ///
    /// `folio` is a folio of device memory, or was one a moment ago.
    unsafe fn has_folio(&self, folio: *const bindings::folio) -> Option<bool> {
        let _guard = rcu::read_lock();
        // SAFETY: By the function's requirements.
        let folio = unsafe { DevFolio::from_raw(NonNull::new(folio.cast_mut())?) };
        let mapping = NonNull::new(folio.owner_unless_tail() as *mut bindings::address_space)?;
        if mapping.as_ptr() as usize & bindings::FOLIO_MAPPING_FLAGS as usize != 0 {
            return Some(false);
        }
        // SAFETY: The folio's mapping may change at any moment, but is cleared before the inode that
        // it lies in is freed, and that is after a grace period; the same goes for the superblock.
        // The low bits tell other things than mappings apart.
        unsafe {
            let host = ptr::read_volatile(&raw const (*mapping.as_ptr()).host);
            Some(!host.is_null() && self.members.has((*host).i_sb))
        }
    }
}

/// Where a call goes, for the KUnit tests.
#[cfg(RDAX_TEST)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Destination {
    /// To the kernel's function, as it was.
    Kernel,
    /// To what serves in its place.
    Ours,
    /// Nowhere: the answer is that no entry was locked.
    NoEntry,
    /// Somewhere else, which is wrong.
    Elsewhere,
}

#[cfg(RDAX_TEST)]
impl Redirection {
    /// The functions' names and what their first arguments are.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (&'static CStr, Key)> {
        self.targets.iter().map(|target| (target.name, target.key))
    }

    /// Where ftrace's callback sends a call of the function with this number in the table.
    ///
    /// # Safety
    ///
    /// `first` is what the function's key says, whichever argument that is about.
    pub(crate) unsafe fn decide(&'static self, number: usize, first: usize) -> Destination {
        let Some(route) = self.routes.get(number) else {
            return Destination::Elsewhere;
        };
        let entry = route.entry.read_once();
        let mut regs: bindings::pt_regs = pin_init::zeroed();
        match route.key {
            Key::SixthVma => regs.r9 = first as c_ulong,
            Key::ProtectedVma => {
                regs.si = first as c_ulong;
                regs.r9 = USERFAULT_CHANGES;
            }
            Key::ZappedVma => regs.si = first as c_ulong,
            _ => regs.di = first as c_ulong,
        }
        regs.dx = bindings::fserror_type_FSERR_METADATA as c_ulong;
        regs.ip = entry as c_ulong;
        let ops: Opaque<bindings::ftrace_ops> = Opaque::zeroed();
        // SAFETY: As ftrace would call it; `ops` is this function's own.
        unsafe {
            (*ops.get()).private = ptr::from_ref(self).cast_mut().cast();
            callback(entry as c_ulong, 0, ops.get(), (&raw mut regs).cast());
        }
        let ip = regs.ip;
        if ip == entry {
            Destination::Kernel
        } else if ip == route.replacement as usize {
            Destination::Ours
        } else if ip == no_entry as *const () as usize {
            Destination::NoEntry
        } else {
            Destination::Elsewhere
        }
    }
}
