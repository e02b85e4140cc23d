// SPDX-License-Identifier: GPL-2.0

//! The switch of a redirection: redirecting the functions, and giving them back.

use super::{
    callback::callback,
    eviction::sees_evictions,
    in_flight::settle,
    Redirection,
    SWITCH, //
};
use crate::kern::{
    bindings,
    compat::this_module,
    error::eopnotsupp,
    memory,
    once::Once, //
};
use core::{
    mem,
    ptr, //
};
use kernel::{
    error::to_result,
    ffi::c_ulong,
    prelude::*, //
};

/// The right to switch a [`Redirection`]; there is one.
pub(crate) struct Handle {
    pub(super) redirection: &'static Redirection,
    pub(super) state: SwitchState,
    /// The first functions have the shorter way.
    pub(super) direct: bool,
    /// ext4 is kept from telling of blocks too early (`rdax_ext4_begin`).
    pub(super) ext4: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SwitchState {
    Off,
    On,
    /// ftrace is broken and did not let go of the functions. They stay with the kernel's own code
    /// only as long as no device is adopted.
    Stuck,
}

impl Handle {
    /// Redirects all functions of the table, or none. No change if they are redirected already.
    /// Sleeps.
    ///
    /// Errors, each with a line in the log that says what to do: `ENOENT` for a function that this
    /// kernel does not have, `EOPNOTSUPP` for one that is not called, or declared otherwise, `EBUSY` if somebody else holds one,
    /// `ENODEV` if ftrace is broken; and `ENOMEM`.
    pub(crate) fn register(&mut self) -> Result {
        match self.state {
            SwitchState::On => return Ok(()),
            SwitchState::Stuck => {
                pr_err!("ftrace did not give the functions back before; reboot\n");
                return Err(ENODEV);
            }
            SwitchState::Off => (),
        }
        let this = self.redirection;
        this.find_entries()?;
        let switch = SWITCH.lock();

        let mut entries: [c_ulong; Redirection::MAX_TARGETS] = [0; Redirection::MAX_TARGETS];
        for (entry, route) in entries.iter_mut().zip(&this.routes) {
            *entry = route.entry.read_once();
        }
        let entries = entries.get_mut(..this.targets.len()).ok_or(EINVAL)?;
        let (first, others) = entries.split_at_mut(Redirection::DIRECT);

        // SAFETY: This is the handle, and nothing is registered in this state.
        self.direct = unsafe { this.register_direct(first) }.is_ok();
        let entries = if self.direct { others } else { entries };

        // Permanent: if tracing could be switched off meanwhile (kernel.ftrace_enabled), adopted
        // files would be left to the kernel's own code.
        let flags = bindings::FTRACE_OPS_FL_IPMODIFY | bindings::FTRACE_OPS_FL_PERMANENT;
        // SAFETY: This is the handle, and `ops` is not registered in this state.
        let result = unsafe { this.register(this.ops.get(), callback, flags as c_ulong, entries) };
        let Err(error) = result else {
            self.state = SwitchState::On;
            drop(switch);
            memory::set_watched(true);
            return self.check_evictions().and_then(|()| self.begin_ext4());
        };
        self.unregister_direct();
        if error == EBUSY && self.state == SwitchState::Off {
            // SAFETY: As above.
            unsafe { this.explain_busy() };
        } else {
            pr_err!("ftrace did not take the functions: {}\n", error.to_errno());
        }
        result
    }

    /// Gives all back if `evict` is not called where a file ends.
    fn check_evictions(&mut self) -> Result {
        let result = match sees_evictions() {
            Ok(true) => return Ok(()),
            Ok(false) => {
                pr_err!(
                    "this kernel was built with evict() as a part of its callers, so files that are in use could not be kept from their end: rdax cannot serve here\n"
                );
                Err(eopnotsupp())
            }
            Err(error) => Err(error),
        };
        self.unregister();
        result
    }

    /// Keeps ext4 from telling of blocks before it has put zeroes there; gives all back if that fails.
    fn begin_ext4(&mut self) -> Result {
        let members = ptr::from_ref(self.redirection.members).cast();
        // SAFETY: The members live forever; this is the handle, so that nobody else begins or ends.
        let result = to_result(unsafe { bindings::rdax_ext4_begin(members) });
        match result {
            Ok(()) => self.ext4 = true,
            Err(error) => {
                pr_err!(
                    "ftrace did not take ext4's ext4_ext_map_blocks and ext4_issue_zeroout ({}), and without them users of ext4 could see each other's deleted data\n",
                    error.to_errno()
                );
                self.unregister();
            }
        }
        result
    }

    /// Gives back the functions that have the shorter way. Sleeps.
    fn unregister_direct(&mut self) {
        if !self.direct {
            return;
        }
        self.direct = false;
        // SAFETY: This is the handle, and it is registered.
        if let Err(error) = unsafe { self.redirection.unregister_direct() } {
            self.stuck(error);
        }
    }

    /// Functions that may still be called must stay.
    fn stuck(&mut self, error: Error) {
        // SAFETY: The module is live, its own code is calling.
        unsafe { bindings::__module_get(this_module().as_ptr()) };
        pr_err!(
            "ftrace did not give the functions back ({}); the module stays loaded until reboot\n",
            error.to_errno()
        );
        self.state = SwitchState::Stuck;
    }

    /// Gives all functions of the table back, and waits until no task is in the module's code on
    /// their behalf. Does nothing while a device is in the set. Sleeps.
    pub(crate) fn unregister(&mut self) {
        if self.state != SwitchState::On || !self.redirection.members.is_empty() {
            return;
        }
        // Ends soon: no device is in the set, so none of their filesystems is mounted whose users might stay.
        memory::set_watched(false);
        self.state = SwitchState::Off;
        if mem::take(&mut self.ext4) {
            // SAFETY: Begun by this handle; no device is in the set.
            if let Err(error) = to_result(unsafe { bindings::rdax_ext4_end() }) {
                self.stuck(error);
            }
        }
        let switch = SWITCH.lock();
        self.unregister_direct();
        // SAFETY: This is the handle, and `ops` is registered.
        if let Err(error) = unsafe { self.redirection.unregister(self.redirection.ops.get()) } {
            self.stuck(error);
        }
        drop(switch);
        if self.state == SwitchState::Stuck {
            return;
        }
        settle();
    }
}
