//! A node boots from its image and its state disk, is attested, and refuses others. Each test boots its own machines.

use anyhow::{Result, ensure};
use e2e::{Image, Machine, StateDisk, Vm, attest, init_with_wrong_secret, null_cipher_header};
use tonic::Code;

#[test]
fn a_real_boot_has_the_computed_values_and_those_of_no_other_image() -> Result<()> {
    let (image, other) = (Image::built()?, another_image()?);
    Machine::new("real boot", image.disk()).run(|vm| {
        attest(vm, image.values())?.must_be_affirming()?;
        attest(vm, other.values())?.must_name_registers(&[4, 9, 11])?;
        let refusal = init_with_wrong_secret(vm, image.values())?;
        ensure!(refusal.code() == Code::PermissionDenied, "{refusal}");
        // A refused caller changes nothing.
        attest(vm, image.values())?.must_be_affirming()
    })
}

#[test]
fn a_changed_kernel_command_line_is_refused() -> Result<()> {
    let (image, changed) = (Image::built()?, another_image()?);
    Machine::new("changed command line", changed.disk()).run(|vm| {
        attest(vm, image.values())?.must_name_registers(&[4, 9, 11])?;
        // What was computed for the changed image is what it measures.
        attest(vm, changed.values())?.must_be_affirming()
    })
}

#[test]
fn a_flipped_bit_in_the_root_file_system_ends_the_machine() -> Result<()> {
    let changed = Image::built()?.with_a_flipped_bit_in_the_root()?;
    let console = Machine::new("flipped bit", changed.disk()).run(Vm::wait_for_end)?;
    ensure!(console.contains("dm-verity device corrupted"), "{console}");
    Ok(())
}

/// A host would hide the settings that close side doors. Without `panic_on_error` the machine goes on without whatever is in
/// the block that cannot be read.
#[test]
fn a_block_of_the_root_file_system_that_cannot_be_read_ends_the_machine() -> Result<()> {
    let image = Image::built()?;
    let sector = image.sector_with("kernel.kexec_load_disabled = 1")?;
    let console = Machine::new("unreadable block", image.disk())
        .with_unreadable_sector(sector)
        .run(Vm::wait_for_end)?;
    ensure!(console.contains("dm-verity device has I/O error"), "{console}");
    Ok(())
}

#[test]
fn a_node_whose_clock_runs_at_a_wrong_rate_restarts_and_comes_up() -> Result<()> {
    let image = Image::built()?;
    Machine::new("wrong clock", image.disk()).run(|vm| {
        vm.run_half_of_the_time_until_it_says("restarting the machine")?;
        vm.wait_for_bootstrapper()?;
        // Measured again from zero, as if it had just been switched on.
        attest(vm, image.values())?.must_be_affirming()
    })
}

#[test]
fn a_node_without_state_disk_says_so_and_powers_off() -> Result<()> {
    let image = Image::built()?;
    Machine::new("no state disk", image.disk())
        .with_state_disk(StateDisk::Missing)
        .must_refuse_to_boot(&["no state disk", "boot failed:", "the state disk was not opened"])
}

#[test]
fn a_state_disk_of_somebody_else_is_left_alone() -> Result<()> {
    let image = Image::built()?;
    let noise = (0..1_u32 << 16).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8);
    Machine::new("foreign state disk", image.disk())
        .with_state_disk(StateDisk::StartsWith(noise.collect()))
        .must_refuse_to_boot(&["primary header does not start with the LUKS2 magic", "boot failed:"])
}

#[test]
fn a_state_disk_without_encryption_is_refused() -> Result<()> {
    let image = Image::built()?;
    Machine::new("null cipher", image.disk())
        .with_state_disk(StateDisk::StartsWith(null_cipher_header()?))
        .must_refuse_to_boot(&[
            "segment has cipher 'cipher_null-ecb', expected aes-xts-plain64",
            "boot failed:",
        ])
}

/// The image of a careless release: the kernel listens to SysRq.
fn another_image() -> Result<Image> {
    Image::built()?.with_command_line("sysctl.kernel.sysrq=0", "sysctl.kernel.sysrq=1")
}
