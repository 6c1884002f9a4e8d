//! How late timers may be.
//!
//! A processor that software emulates spends much of its time on waking up: a third of what an idle control plane uses. Timers that may
//! be a little late wake it together. Programs inherit this from whoever starts them, so systemd, Kubernetes and all pods do.
//!
//! Only the machine can tell what it is, and it belongs to the host. One that lies delays timers, which a host can do anyway.

use std::arch::x86_64::__cpuid;
use std::io;
use std::num::NonZeroU64;

use rustix::thread::set_current_timer_slack;

/// The first leaf that names a hypervisor.
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
/// QEMU's name for its own emulation, `target/i386/cpu.c` in its sources. With KVM, and on real hardware, there is another.
const EMULATOR: [u8; 12] = *b"TCGTCGTCGTCG";
/// In nanoseconds. The kernel's default is 50 microseconds.
const SLACK: NonZeroU64 = NonZeroU64::new(20_000_000).unwrap();

/// Lets the timers of this program, and of those it starts, be late if the processor is emulated.
pub(crate) fn relax_if_emulated() -> io::Result<()> {
    // Without a hypervisor, this is whatever the processor has there.
    let leaf = __cpuid(HYPERVISOR_LEAF);
    let name = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    if name.as_flattened() == EMULATOR {
        set_current_timer_slack(Some(SLACK))?;
    }
    Ok(())
}
