//! First program of the VM of `test-disk-vm`: runs the real disk-mapper on a real disk and plays the host between the runs.
//!
//! Each check is one line, `CHECK passed <name> <seconds>` or `CHECK failed <name>: <reason>`; `END` says that all ran.

mod chapters;
mod hostile;
mod machine;
mod report;

use report::Report;

fn main() -> ! {
    let mut report = Report::start();
    report.check("machine is set up", machine::set_up);
    match machine::chapter().as_deref() {
        Some("new") => chapters::new_node(&mut report),
        Some("known") => chapters::known_node(&mut report),
        Some("power-cuts") => chapters::power_cuts(&mut report),
        Some("predecessor") => chapters::predecessor(&mut report),
        Some("two-disks") => chapters::two_disks(&mut report),
        other => report.check("chapter is known", || anyhow::bail!("{other:?}")),
    }
    report.end();
    machine::power_off()
}
