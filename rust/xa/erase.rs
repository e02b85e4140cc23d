// SPDX-License-Identifier: GPL-2.0

//! Removing values that nobody has locked.

use super::{
    super::{bindings, fs::PageIndex, page::Association},
    node::{as_value, marks_of, NODE_MASK, NODE_ORDER},
    Mark, RawValue, XaState,
};
use core::ptr;

impl<'g> XaState<'g, '_> {
    /// Removes the value that the state was walked to, with its marks. `gone` has to take its memory, if it has any,
    /// off its folio. False, and nothing is removed, when there is none, or it is locked.
    #[inline]
    pub(crate) fn erase(&mut self, gone: impl FnOnce(Association<'g>)) -> bool {
        let Some(value) = self.current_value().filter(|value| !value.is_locked()) else {
            return false;
        };
        // SAFETY: The value is in the tree, and is removed below.
        if let Some(association) = unsafe { value.association() } {
            gone(association);
        }
        // SAFETY: The value is not locked.
        unsafe { self.erase_current() };
        true
    }

    /// Removes the value that the state stands at.
    ///
    /// # Safety
    ///
    /// It is not another's to remove.
    #[inline(always)]
    pub(super) unsafe fn erase_current(&mut self) {
        // SAFETY: The tree is alive and locked. Removing needs no memory.
        unsafe { bindings::xas_store(&mut self.xas, ptr::null_mut()) };
    }

    /// Removes every value of the node of the lowest level that begins at `first`, with the marks, in
    /// one step. The state is at `first` then.
    ///
    /// # Safety
    ///
    /// None of them is another's to remove, and none extends beyond the node.
    pub(super) unsafe fn erase_node(&mut self, first: PageIndex) {
        self.give_order(first, NODE_ORDER);
        // SAFETY: By this function's requirements.
        unsafe { self.erase_current() };
        self.drop_order();
        self.set(first);
    }

    /// Removes the values of the node that the state stands in, if it is one of the lowest level and
    /// the state at its first index: one after the other, as long as they are not locked and `goes`
    /// says so, which is told the index, the value, and whether it has a mark. `gone` has to take the memory of each
    /// that has any off its folio. Where nothing was removed the state stays; otherwise it goes on behind what was.
    /// Returns whether anything was.
    #[inline]
    pub(crate) fn erase_in_node(
        &mut self,
        mark: Mark,
        mut goes: impl FnMut(PageIndex, RawValue<'_>, bool) -> bool,
        mut gone: impl FnMut(Association<'g>),
    ) -> bool {
        let first = self.index();
        if first.get() & NODE_MASK != 0 || self.slot_of_page(0).is_none() {
            return false;
        }
        // SAFETY: `slot_of_page` says that there is a node; by the type invariant it is in the tree.
        let mut marks = unsafe { marks_of(self.xas.xa_node, mark) };
        let mut end = None;
        let mut all = true;
        for offset in 0..=NODE_MASK {
            let value = self
                .slot_of_page(offset)
                // SAFETY: A slot of the tree, which is locked for `'g`.
                .and_then(|slot| unsafe { as_value::<'g>(slot) });
            if let Some(value) = value {
                let index = PageIndex::new(first.get() + offset);
                if value.is_locked() || !goes(index, value, marks & 1 != 0) {
                    all = false;
                    break;
                }
                // SAFETY: The value is in the tree, is looked at once, and is removed below.
                if let Some(association) = unsafe { value.association() } {
                    gone(association);
                }
                end = Some(value.order().last(index));
            }
            marks >>= 1;
        }
        let Some(mut end) = end else {
            return false;
        };
        if all {
            // SAFETY: All values of the node were looked at, and none is locked.
            unsafe { self.erase_node(first) };
            end = NODE_ORDER.last(first);
        } else {
            self.set(first);
            while self.find(end).is_some() {
                // SAFETY: The value is one of those that were looked at.
                unsafe { self.erase_current() };
            }
        }
        self.set(PageIndex::new(end.get().wrapping_add(1)));
        true
    }
}
