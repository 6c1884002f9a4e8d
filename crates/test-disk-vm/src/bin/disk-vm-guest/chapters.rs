//! What happens to the state disk, boot by boot.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use disk_encryption::header::{ExpectedDisk, Header};
use disk_encryption::paths::{CRYPTSETUP, EPHEMERAL_KEY, HEADER, MAPPED_DEVICE, MAPPING, MOUNT_POINT, RUN_DIR};
use disk_encryption::{Cryptsetup, CryptsetupError, CryptsetupProgram, DiskKey, NewStateDisk, StateDisk};
use rustix::fs::OFlags;
use secret::StateDiskKey;
use secret::zeroize::Zeroizing;

use crate::hostile::{ATTACKS, METADATA_SIZE, replace_json};
use crate::machine::{disk, kernel_log_lines_with, mount_ext4, unmount_all};
use crate::report::Report;

/// The UUID of the key that the disk gets.
const TICKET_DISK: &str = "3f2504e0-4f89-11d3-9a0c-0305e82c33ff";

const DISK_MAPPER: &str = "/usr/bin/disk-mapper";
/// How the kernel reports a sector whose tag is wrong (`drivers/md/dm-crypt.c`).
const INTEGRITY_ERROR: &str = "INTEGRITY AEAD ERROR";
/// Where the tests write behind the file system's back, in bytes of the open disk: far behind what it uses, and between two of the
/// places where it keeps inodes, which are 2 GiB apart.
const PATTERN_OFFSET: u64 = (10 << 30) + (512 << 20);
const PATTERN_SIZE: usize = 8 << 20;

/// Where dm-integrity's superblock lies: at the start of the data.
const SUPERBLOCK_OFFSET: u64 = 16 << 20;

/// Stands for the key a ticket brings; the next boot must know it too.
fn state_key() -> StateDiskKey {
    StateDiskKey::from_bytes([0x5a; 32])
}

fn cryptsetup() -> CryptsetupProgram {
    CryptsetupProgram::new(Path::new(CRYPTSETUP))
}

/// A blank disk: formatted, used, re-keyed; then the plug is pulled.
pub(crate) fn new_node(report: &mut Report) {
    report.check("new node formats and mounts a blank disk", || {
        let status = Command::new(DISK_MAPPER).status()?;
        ensure!(status.success(), "disk-mapper ended with {status}");
        let mounts = fs::read_to_string("/proc/mounts")?;
        ensure!(
            mounts
                .lines()
                .any(|line| line.starts_with("/dev/mapper/state /run/state ext4 ")),
            "{mounts}"
        );
        Ok(())
    });
    report.check("inodes that nobody used yet can be read", || {
        for sector in last_sectors_of_inode_tables()? {
            read_sector(sector).with_context(|| format!("reading the inodes at {sector}"))?;
        }
        Ok(())
    });
    report.check("ephemeral key is for root only", || {
        let (key, folder) = (fs::metadata(EPHEMERAL_KEY)?, fs::metadata(RUN_DIR)?);
        ensure!(key.len() == 32 && key.mode() & 0o7777 == 0o400, "{key:?}");
        ensure!(folder.mode() & 0o7777 == 0o700, "{folder:?}");
        Ok(())
    });
    report.check("100 MB are written", || {
        let mut file = File::create(format!("{MOUNT_POINT}/bulk"))?;
        let block = vec![0x77; 1 << 20];
        for _ in 0..100 {
            file.write_all(&block)?;
        }
        Ok(file.sync_all()?)
    });
    report.check("100 MB are read", || {
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        let bytes = fs::read(format!("{MOUNT_POINT}/bulk"))?;
        ensure!(
            bytes.len() == 100 << 20 && bytes.iter().all(|byte| *byte == 0x77),
            "other bytes came back"
        );
        Ok(())
    });
    let mut old_key = Zeroizing::new(Vec::new());
    report.check("ephemeral key opens the disk before re-keying", || {
        old_key.extend(fs::read(EPHEMERAL_KEY)?);
        test_key(&old_key)
    });
    report.check("disk is re-keyed while it is open", || {
        let device = disk("state")?;
        let new_disk = NewStateDisk::load(&device, Path::new(HEADER), Path::new(EPHEMERAL_KEY))?;
        // Another one than the disk was formatted with, as a ticket has it.
        let of_ticket = TICKET_DISK.parse()?;
        new_disk.rekey(&cryptsetup(), of_ticket, &state_key())?;
        let on_disk = Header::read_from(&mut File::open(&device)?, ExpectedDisk::Is(of_ticket))?;
        ensure!(on_disk.metadata().is_initialised(), "header has no mark");
        ensure!(!Path::new(EPHEMERAL_KEY).exists(), "ephemeral key is still there");
        Ok(())
    });
    report.check("ephemeral key is refused after re-keying", || {
        match test_key(&old_key) {
            Err(error) if matches!(error.downcast_ref(), Some(CryptsetupError::WrongKey)) => Ok(()),
            other => bail!("{other:?}"),
        }
    });
    report.check("new key opens the disk after re-keying", || {
        test_key(state_key().expose())
    });
    report.check("old keyslot is gone from the disk", || {
        // Only one keyslot's worth of bytes may be left behind the header's two copies.
        let mut area = vec![0; 4 << 20];
        File::open(disk("state")?)?.read_exact_at(&mut area, METADATA_SIZE as u64)?;
        let used = area
            .chunks(4096)
            .filter(|block| block.iter().any(|byte| *byte != 0))
            .count();
        ensure!(used == 385_024 / 4096, "{used} blocks are in use");
        Ok(())
    });
    report.check("nothing read a sector it had not written", no_integrity_errors);
    report.check("header is copied out", || copy_out(0));
    report.check("file is on the disk when the plug is pulled", || {
        let mut file = File::create(format!("{MOUNT_POINT}/kept"))?;
        file.write_all(b"kept")?;
        file.sync_all()?;
        // These are not, or not all, so that the journal has something to recover.
        for number in 0..200 {
            fs::write(format!("{MOUNT_POINT}/lost-{number}"), vec![1; 10_000])?;
        }
        Ok(())
    });
}

/// The same disk after a reboot, then the host's attacks on it.
pub(crate) fn known_node(report: &mut Report) {
    // This machine has no bootstrapper.
    report.check("known node's disk is left closed for the bootstrapper", || {
        let output = Command::new(DISK_MAPPER).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        said.lines().for_each(say);
        ensure!(
            said.contains("waiting for the key of disk ") && said.contains("cannot start /usr/bin/bootstrapper"),
            "it said {said}"
        );
        let is_closed = !Path::new(MAPPED_DEVICE).exists();
        ensure!(is_closed && !output.status.success(), "it opened the disk");
        Ok(())
    });
    report.check("wrong key is refused", || {
        match open(&read_header()?, &StateDiskKey::from_bytes([1; 32])) {
            Err(error) if format!("{error:#}").contains("the key does not open the disk") => Ok(()),
            other => bail!("{other:?}"),
        }
    });
    report.check("disk opens with its key", || open(&read_header()?, &state_key()));
    report.check("file system recovers after the plug was pulled", || {
        mount_ext4(MAPPED_DEVICE, MOUNT_POINT)?;
        ensure!(
            fs::read(format!("{MOUNT_POINT}/kept"))? == b"kept",
            "other bytes came back"
        );
        ensure!(
            fs::read(format!("{MOUNT_POINT}/bulk"))?.len() == 100 << 20,
            "other bytes came back"
        );
        Ok(())
    });
    report.check("recovery read no sector that was never written", no_integrity_errors);
    report.check("disk closes", || {
        unmount_all(MOUNT_POINT)?;
        close()
    });

    swap_between_check_and_use(report);
    hostile_headers(report);
    tampered_data(report);

    report.check("header of another disk is refused when the disk is known", || {
        let expected = "3f2504e0-4f89-11d3-9a0c-0305e82c3301".parse()?;
        let refusal = Header::read_from(&mut File::open(disk("state")?)?, ExpectedDisk::Is(expected));
        let refusal = refusal.err().context("was accepted")?.to_string();
        ensure!(refusal.contains("expected disk 3f2504e0"), "{refusal}");
        Ok(())
    });
    report.check("disk that never joined is formatted again, with another UUID", || {
        let before = read_header()?.metadata().disk();
        change_header(|bytes| replace_json(bytes, r#""diskIsInitialized":true"#, r#""diskIsInitialized":false"#))?;
        let (success, output) = run_disk_mapper()?;
        ensure!(success && output.contains("never joined a cluster"), "{output}");
        ensure!(read_header()?.metadata().disk() != before, "UUID stayed");
        ensure!(
            !Path::new(&format!("{MOUNT_POINT}/kept")).exists(),
            "old files are there"
        );
        Ok(())
    });
}

/// The power goes while a disk that never joined gets another header; the disk mapper then finds what was written of it.
pub(crate) fn power_cuts(report: &mut Report) {
    for (steps, found) in [
        (1, "its disk was being formatted when the power went"),
        (2, "its disk was being formatted when the power went"),
        (3, "never joined a cluster"),
    ] {
        report.check(&format!("disk is formatted after a power cut at step {steps}"), || {
            let header = read_header()?;
            write_steps(&header, steps)?;
            let (success, output) = run_disk_mapper()?;
            ensure!(success && output.contains(found), "{output}");
            ensure!(
                read_header()?.metadata().disk() != header.metadata().disk(),
                "UUID stayed"
            );
            unmount_all(MOUNT_POINT)?;
            close()
        });
    }
}

/// Writes a header to the disk up to one of its barriers, the first being 1.
fn write_steps(header: &Header, steps: usize) -> Result<()> {
    let mut device = OpenOptions::new().write(true).open(disk("state")?)?;
    let mut done = 0;
    let result = header.write_to(&mut device, |device| {
        device.sync_all()?;
        done += 1;
        match done == steps {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    });
    ensure!(result.is_err() && done == steps, "there are only {done} steps");
    Ok(())
}

/// A disk made the way the predecessor made it, with the same library: header on the disk from the start, cost of the key
/// derivation from a benchmark, key changed in place, token last.
pub(crate) fn predecessor(report: &mut Report) {
    let device = || Ok::<_, anyhow::Error>(disk("state")?.to_string_lossy().into_owned());
    report.check("disk is formatted as the predecessor did", || {
        let format = "luksFormat --batch-mode --type luks2 --cipher aes-xts-plain64 --key-size 512 --hash sha256 \
            --integrity hmac-sha256 --integrity-no-wipe --sector-size 4096 \
            --pbkdf argon2id --pbkdf-memory 65536 --pbkdf-parallel 4 --iter-time 2000 --key-file - --keyfile-size 32";
        run_cryptsetup(format, &[&device()?], &[1; 32])?;
        let change = "luksChangeKey --batch-mode --key-slot 0 --pbkdf argon2id --pbkdf-memory 65536 --pbkdf-parallel 4 \
            --iter-time 2000 --key-file - --keyfile-size 32 --new-keyfile-size 32";
        let both = [[1; 32], *state_key().expose()].concat();
        run_cryptsetup(change, &[&device()?, "-"], &both)?;
        let token = br#"{"type":"constellation-state-disk","keyslots":[],"diskIsInitialized":true}"#;
        run_cryptsetup("token import --token-id 0 --json-file -", &[&device()?], token)?;
        copy_out(METADATA_SIZE as u64)
    });
    report.check("header of a predecessor's disk is accepted", || {
        ensure!(read_header()?.metadata().is_initialised(), "header has no mark");
        Ok(())
    });
    report.check("predecessor's disk opens", || {
        open(&read_header()?, &state_key())?;
        close()
    });
}

/// Two disks that both say they are the state disk.
pub(crate) fn two_disks(report: &mut Report) {
    report.check("two state disks are refused", || {
        let (success, output) = run_disk_mapper()?;
        ensure!(
            !success && output.contains("both have the serial number 'state'"),
            "{output}"
        );
        Ok(())
    });
}

/// The host changes the header after it was checked and before the disk is opened.
fn swap_between_check_and_use(report: &mut Report) {
    report.check("header swapped after the check has no effect", || {
        let checked = read_header()?;
        let good = metadata_of(&disk("state")?)?;
        for attack in ATTACKS {
            write_metadata(&attack.apply(&good)?)?;
            open(&checked, &state_key()).with_context(|| attack.name)?;
            let table = mapping_has_integrity()?;
            close()?;
            ensure!(table, "{}: no integrity below the mapping", attack.name);
        }
        write_metadata(&good)
    });
}

/// The host writes a header and starts the node.
fn hostile_headers(report: &mut Report) {
    for attack in ATTACKS {
        report.check(&format!("refused: {}", attack.name), || {
            let good = metadata_of(&disk("state")?)?;
            let hostile = attack.apply(&good)?;
            write_metadata(&hostile)?;
            let (success, output) = run_disk_mapper()?;
            let untouched = metadata_of(&disk("state")?)? == hostile;
            write_metadata(&good)?;
            ensure!(!success, "was accepted: {output}");
            ensure!(untouched, "the disk was written");
            ensure!(output.contains(attack.reason), "another reason: {output}");
            Ok(())
        });
    }
}

/// The host changes data, and the node reads sectors that were never written.
fn tampered_data(report: &mut Report) {
    report.check("pattern is written", || {
        open(&read_header()?, &state_key())?;
        let device = OpenOptions::new().write(true).open(MAPPED_DEVICE)?;
        device.write_all_at(&vec![0x33; PATTERN_SIZE], PATTERN_OFFSET)?;
        device.sync_all()?;
        drop(device);
        close()
    });
    report.check("sector that was never written cannot be read", || {
        open(&read_header()?, &state_key())?;
        let outcome = read_sector(PATTERN_OFFSET + (1 << 30));
        close()?;
        ensure!(outcome.is_err(), "it could");
        Ok(())
    });
    tampered_superblock(report);
    report.check("changed data cannot be read", || {
        flip_bytes_of_pattern()?;
        open(&read_header()?, &state_key())?;
        let sectors = (0..PATTERN_SIZE as u64)
            .step_by(4096)
            .map(|offset| read_sector(PATTERN_OFFSET + offset));
        let (good, failed): (Vec<_>, Vec<_>) = sectors.partition(Result::is_ok);
        close()?;
        let forged = good
            .iter()
            .flatten()
            .filter(|sector| sector.iter().any(|byte| *byte != 0x33))
            .count();
        say(&format!(
            "{} sectors intact, {} refused, {forged} forged",
            good.len(),
            failed.len()
        ));
        ensure!(forged == 0 && !failed.is_empty(), "see above");
        Ok(())
    });
}

/// The host changes dm-integrity's superblock, which nothing authenticates. Opening may fail; forged data may not appear.
fn tampered_superblock(report: &mut Report) {
    // `drivers/md/dm-integrity.c`, struct superblock: offset, new bytes, which field.
    let changes: [(u64, &[u8], &str); 9] = [
        (8, &[1], "version"),
        (9, &[3], "log2_interleave_sectors"),
        (10, &[16, 0], "integrity_tag_size"),
        (12, &[0xff; 4], "journal_sections"),
        (16, &[0, 0, 0x40, 1, 0, 0, 0, 0], "provided_data_sectors"),
        (24, &[2, 0, 0, 0], "flags: recalculating"),
        (24, &[0x20, 0, 0, 0], "flags: inline"),
        (28, &[0], "log2_sectors_per_block"),
        (0, &[0; 8], "magic"),
    ];
    for (offset, bytes, field) in changes {
        report.check(&format!("changed superblock forges nothing: {field}"), || {
            let position = SUPERBLOCK_OFFSET + offset;
            let device = OpenOptions::new().read(true).write(true).open(disk("state")?)?;
            let mut good = vec![0; bytes.len()];
            device.read_exact_at(&mut good, position)?;
            device.write_all_at(bytes, position)?;
            device.sync_all()?;
            let opened = open(&read_header()?, &state_key());
            let forged = opened.is_ok() && read_sector(PATTERN_OFFSET).is_ok_and(|sector| sector != [0x33; 4096]);
            if opened.is_ok() {
                close()?;
            }
            device.write_all_at(&good, position)?;
            device.sync_all()?;
            say(&format!("opened: {}", opened.is_ok()));
            ensure!(!forged, "other bytes came back");
            Ok(())
        });
    }
}

/// Finds the pattern's neighbourhood on the disk and flips one byte in every 64 KiB of it.
///
/// dm-integrity puts tags between the data: 32 bytes for 4096, and a journal in front.
fn flip_bytes_of_pattern() -> Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(disk("state")?)?;
    let start = (16 << 20) + PATTERN_OFFSET + PATTERN_OFFSET / 4096 * 32;
    for offset in (start..start + (192 << 20)).step_by(64 << 10) {
        let mut byte = [0];
        device.read_exact_at(&mut byte, offset)?;
        device.write_all_at(&[byte[0] ^ 1], offset)?;
    }
    Ok(device.sync_all()?)
}

/// For each block group of the file system, in bytes of the open disk (kernel documentation, ext4, "The Super Block", "Block Group
/// Descriptors").
fn last_sectors_of_inode_tables() -> Result<Vec<u64>> {
    const BLOCK: u64 = 4096;
    const SUPERBLOCK: usize = 1024;
    let device = File::open(MAPPED_DEVICE)?;
    let mut first = vec![0; 1 << 20];
    device.read_exact_at(&mut first, 0)?;
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([first[at], first[at + 1]]));
    let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
    let (blocks, per_group) = (u32_at(SUPERBLOCK + 0x4), u32_at(SUPERBLOCK + 0x20));
    let table_size = u32_at(SUPERBLOCK + 0x28) * u16_at(SUPERBLOCK + 0x58);
    let descriptor_size = usize::try_from(u16_at(SUPERBLOCK + 0xfe).max(32))?;
    let groups = usize::try_from(blocks.div_ceil(per_group))?;
    ensure!(groups > 1 && table_size >= BLOCK, "not the superblock of an ext4");
    let last_sector = |group: usize| {
        let descriptor = usize::try_from(BLOCK).expect("4096 fits") + group * descriptor_size;
        let table = u32_at(descriptor + 0x8) | u32_at(descriptor + 0x28) << 32;
        table * BLOCK + table_size - BLOCK
    };
    Ok((0..groups).map(last_sector).collect())
}

fn read_sector(offset: u64) -> Result<Vec<u8>> {
    let flags = i32::try_from(OFlags::DIRECT.bits())?;
    let device = OpenOptions::new().read(true).custom_flags(flags).open(MAPPED_DEVICE)?;
    let mut memory = vec![0; 8192];
    let start = memory.as_ptr().align_offset(4096);
    device.read_exact_at(&mut memory[start..start + 4096], offset)?;
    Ok(memory[start..start + 4096].to_vec())
}

fn read_header() -> Result<Header> {
    Ok(Header::read_from(
        &mut File::open(disk("state")?)?,
        ExpectedDisk::FirstSeen,
    )?)
}

fn open(header: &Header, key: &StateDiskKey) -> Result<()> {
    fs::create_dir_all(RUN_DIR)?;
    let (device, cryptsetup) = (disk("state")?, cryptsetup());
    Ok(StateDisk::new(&cryptsetup, &device, Path::new(HEADER)).open(header, DiskKey::State(key), MAPPING)?)
}

fn close() -> Result<()> {
    Ok(cryptsetup().run(&["close", MAPPING], &[])?)
}

/// Runs a command whose fixed part is written as on a command line.
fn run_cryptsetup(command: &str, last: &[&str], input: &[u8]) -> Result<()> {
    let arguments: Vec<_> = command.split_whitespace().chain(last.iter().copied()).collect();
    Ok(cryptsetup().run(&arguments, input)?)
}

/// Leaves the disk's header for the program that started this machine.
fn copy_out(offset: u64) -> Result<()> {
    let header = metadata_of(&disk("state")?)?;
    Ok(OpenOptions::new()
        .write(true)
        .open(disk("out")?)?
        .write_all_at(&header, offset)?)
}

/// Tries a key on the header that is on the disk, the way any LUKS2 tool would.
fn test_key(key: &[u8]) -> Result<()> {
    let device = disk("state")?;
    let device = device.to_string_lossy();
    let arguments = [
        "open",
        "--test-passphrase",
        "--key-file",
        "-",
        "--keyfile-size",
        "32",
        &*device,
    ];
    Ok(cryptsetup().run(&arguments, key)?)
}

/// Whether dm-integrity lies below the mapping: cryptsetup calls that device after it.
fn mapping_has_integrity() -> Result<bool> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        names.push(
            fs::read_to_string(entry?.path().join("dm/name"))
                .unwrap_or_default()
                .trim()
                .to_owned(),
        );
    }
    Ok(names.iter().any(|name| name == "state_dif"))
}

fn metadata_of(device: &Path) -> Result<Vec<u8>> {
    let mut bytes = vec![0; METADATA_SIZE];
    File::open(device)?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn write_metadata(bytes: &[u8]) -> Result<()> {
    let device = OpenOptions::new().write(true).open(disk("state")?)?;
    device.write_all_at(bytes, 0)?;
    Ok(device.sync_all()?)
}

fn change_header(change: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut bytes = metadata_of(&disk("state")?)?;
    change(&mut bytes)?;
    write_metadata(&bytes)
}

/// Runs the real program to its end. Returns whether it succeeded, and what it said.
fn run_disk_mapper() -> Result<(bool, String)> {
    let output = Command::new(DISK_MAPPER).output()?;
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    ))
}

fn no_integrity_errors() -> Result<()> {
    let errors = kernel_log_lines_with(INTEGRITY_ERROR)?;
    ensure!(errors.is_empty(), "{} of them: {errors:?}", errors.len());
    Ok(())
}

fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
