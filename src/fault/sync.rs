// SPDX-License-Identifier: GPL-2.0

//! The end of a synchronous fault.

use super::{
    super::{
        device::FileDevice,
        stats::Counter,
        tree, //
    },
    code_of, Failure, Fault, PMD, PTE, PUD,
};
use crate::kern::{
    order::Order,
    page::Pfn,
    vm::{FaultCode, Present, VmFault}, //
};

/// Ends a synchronous fault (`dax_finish_sync_fault`): makes the metadata durable, then the entry
/// dirty and the mapping writable. Sleeps.
///
/// Held: the filesystem's `invalidate_lock`, shared.
pub(crate) fn finish_sync_fault<'f>(vmf: &'f mut VmFault<'f>, order: u32, pfn: Pfn) -> FaultCode {
    match Order::of_level(order) {
        Some(Order::PTE) => finish_of_order::<PTE>(vmf, pfn),
        Some(Order::PMD) => finish_of_order::<PMD>(vmf, pfn),
        Some(_) => finish_of_order::<PUD>(vmf, pfn),
        None => FaultCode::FALLBACK,
    }
}

fn finish_of_order<'f, const ORDER: usize>(vmf: &'f mut VmFault<'f>, pfn: Pfn) -> FaultCode {
    let order = Order::from_bits(ORDER);
    let mapping = vmf.mapping();
    let device = FileDevice::of(mapping.host());
    let index = vmf.index();
    let start = order.first(index).to_byte();
    if vmf
        .file()
        .sync_range(start, start + order.bytes() as u64 - 1)
        .is_err()
    {
        device.inc(Counter::FaultErrors);
        return FaultCode::SIGBUS;
    }
    let mut fault = Fault::<ORDER> {
        vmf,
        device,
        mapping,
        index,
        write: true,
    };
    let locked = match tree::lock_present_killable(mapping, index) {
        Ok(Some(locked)) => locked,
        Ok(None) => return FaultCode::NOPAGE,
        // The task is about to die.
        Err(error) => return code_of(error),
    };
    let block = match locked.entry().block() {
        Some(block) if block.order() >= order => block,
        _ => return FaultCode::NOPAGE,
    };
    let first = fault.offset_in(&locked);
    if block.nth(first).pfn() != pfn {
        return FaultCode::NOPAGE;
    }
    // Nobody had the entry locked meanwhile, so memory may have failed.
    let page = match fault.sound(block, first, false) {
        Ok(page) => page,
        Err(failure) => return fault.failed(failure),
    };
    let present = match fault.vmf.present(order) {
        Present::Smaller | Present::Larger => return FaultCode::NOPAGE,
        Present::Nothing => false,
        Present::Mapped => true,
    };
    fault.set_dirty(&locked);
    match fault.insert_memory(&locked, page, present) {
        Ok(code) => code,
        Err(failure) => fault.failed(failure),
    }
}

impl<const ORDER: usize> Fault<'_, ORDER> {
    /// The core's code for a failure behind the sync.
    #[cold]
    fn failed(&self, failure: Failure<'_>) -> FaultCode {
        match failure {
            Failure::Code(code) => code,
            Failure::Error(error) => {
                self.device.inc(Counter::FaultErrors);
                code_of(error)
            }
            // The same order would fail again.
            _ if self.order() > Order::PTE => FaultCode::FALLBACK,
            _ => FaultCode::NOPAGE,
        }
    }
}
