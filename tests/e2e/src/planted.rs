//! Disks that a hostile host gives to its VM.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use disk_encryption::header::repair_checksums;

use crate::image::{Tools, output};

const MIB: u64 = 1 << 20;
/// Size of each planted partition.
const PARTITION: u64 = 16 * MIB;
/// Types of the Discoverable Partitions Specification that systemd mounts or uses by itself: root and /usr (x86-64), /var,
/// /home, swap.
const TYPES: [&str; 5] = [
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "8484680c-9521-48c6-9c11-b0720656f69e",
    "4d21b016-b534-45c2-a9fb-5c16e091fd2d",
    "933ac7e1-2eb4-4f15-b844-eb07f3d3b9a9",
    SWAP,
];
const SWAP: &str = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f";

/// The header of a re-keyed state disk, made in a VM of `test-disk-vm`.
const GOOD_HEADER: &[u8] = include_bytes!("../../../crates/disk-encryption/testdata/rekeyed.luks2");
/// Length of each of its two copies, and of the binary part in front of the JSON area (LUKS2 On-Disk Format 1.1, section 2).
const COPY_LEN: usize = 16 * 1024;
const BINARY_LEN: usize = 4096;

/// Writes a disk with a partition of each kind that systemd would use by itself, all of them with valid content. Gives the
/// value of QEMU's `-drive` for it; reading any of the contents fails, so that it is counted.
///
/// # Errors
/// When the image builder's tools fail.
pub fn partitions(folder: &Path, unit: &str) -> Result<String> {
    let tools = Tools::find()?;
    let tree = folder.join("tree");
    let units = tree.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&units)?;
    fs::write(units.join("planted.service"), unit)?;
    let file_system = folder.join("planted.erofs");
    output(
        tools
            .command("usr/bin/mkfs.erofs")
            .arg("--quiet")
            .arg(&file_system)
            .arg(&tree),
    )?;
    let file_system = fs::read(file_system)?;
    ensure!(
        file_system.len() as u64 <= PARTITION,
        "planted file system is too large"
    );

    let path = folder.join("planted.img");
    let disk = File::create(&path)?;
    disk.set_len((TYPES.len() as u64 + 2) * PARTITION)?;
    let mut script = "label: gpt\nunit: sectors\n".to_owned();
    let path_option = path.display().to_string().replace(',', ",,");
    let mut drive = format!("driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={path_option}");
    for (number, kind) in TYPES.into_iter().enumerate() {
        let start = MIB + number as u64 * PARTITION;
        script += &format!("start={}, size={}, type={kind}\n", start / 512, PARTITION / 512);
        // Whoever looks for a file system or for swap space reads the first page.
        let trap = format!("file.inject-error.{number}");
        drive += &format!(",{trap}.event=none,{trap}.sector={}", start / 512 + 2);
        if kind == SWAP {
            disk.write_all_at(&swap(), start)?;
        } else {
            disk.write_all_at(&file_system, start)?;
        }
    }
    let mut sfdisk = tools.command("usr/sbin/sfdisk");
    sfdisk
        .args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe=never"])
        .arg(&path);
    let mut sfdisk = sfdisk.stdin(Stdio::piped()).spawn().context("starting sfdisk")?;
    sfdisk
        .stdin
        .take()
        .context("sfdisk takes no input")?
        .write_all(script.as_bytes())?;
    ensure!(sfdisk.wait()?.success(), "sfdisk failed");
    Ok(drive)
}

/// The first page of swap space (mkswap(8); `union swap_header` of the kernel's include/linux/swap.h).
fn swap() -> [u8; 4096] {
    const MAGIC: &[u8] = b"SWAPSPACE2";
    let mut page = [0; 4096];
    let last_page = u32::try_from(PARTITION / 4096 - 1).unwrap_or(u32::MAX);
    page[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    page[1028..1032].copy_from_slice(&last_page.to_le_bytes());
    page[4096 - MAGIC.len()..].copy_from_slice(MAGIC);
    page
}

/// A good header of a state disk, except that the data is not encrypted: the host could read and write it.
///
/// # Errors
/// When the good header has another form.
pub fn null_cipher_header() -> Result<Vec<u8>> {
    const GOOD: &str = r#""encryption":"aes-xts-plain64","sector_size""#;
    const NULL: &str = r#""encryption":"cipher_null-ecb","sector_size""#;
    let mut header = GOOD_HEADER.to_vec();
    for copy in header.chunks_exact_mut(COPY_LEN) {
        let area = &mut copy[BINARY_LEN..];
        let position = area.windows(GOOD.len()).position(|window| window == GOOD.as_bytes());
        let position = position.context("the header has no data segment")?;
        area[position..position + NULL.len()].copy_from_slice(NULL.as_bytes());
    }
    repair_checksums(&mut header);
    Ok(header)
}
