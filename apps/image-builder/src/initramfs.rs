//! The initramfs: node-init, dmsetup and the modules for the boot disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::definition::Definition;
use crate::kernel::Kernel;
use crate::tools::{Tools, run};
use crate::tree;

const DMSETUP: &str = "usr/sbin/dmsetup";

/// Assembles the initramfs in `folder` and writes it, compressed, to `output`.
pub(crate) fn build(
    definition: &Definition,
    kernel: &Kernel,
    node_packages: &Path,
    node_init: &Path,
    tools: &Tools,
    work: &Path,
    output: &Path,
) -> Result<()> {
    let folder = work.join("initramfs");
    fs::create_dir_all(&folder)?;
    tree::keep_paths(["lib", "lib64", DMSETUP].map(str::to_owned), node_packages, &folder)?;
    tree::copy_file(node_init, &folder.join("init"), 0o755)?;
    let mut order = String::new();
    for module in kernel.load_order(&definition.modules_initramfs)? {
        let name = module.rsplit('/').next().unwrap_or(&module);
        tree::copy_file(&kernel.root().join(&module), &folder.join("modules").join(name), 0o644)?;
        order.push_str(name);
        order.push('\n');
    }
    tree::write_file(&folder.join("modules/order"), order)?;
    for mount_point in ["dev", "proc", "run", "sys", "sysroot"] {
        fs::create_dir_all(folder.join(mount_point))?;
    }
    tree::finish(&folder)?;

    let archive = work.join("initramfs.cpio");
    fs::write(&archive, archive_of(&folder)?)?;
    let mut zstd = tools.command("usr/bin/zstd");
    zstd.args(["-12", "--threads=1", "--no-progress", "--force", "-o"])
        .arg(output)
        .arg(&archive);
    run(&mut zstd).map(drop)
}

/// A cpio archive in the "newc" format (kernel documentation, "initramfs buffer format"). The same files give the same bytes.
fn archive_of(folder: &Path) -> Result<Vec<u8>> {
    let mut paths = tree::walk(folder)?;
    paths.sort();
    let mut archive = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        let full = folder.join(path);
        let metadata = fs::symlink_metadata(&full)?;
        let content = if metadata.is_symlink() {
            fs::read_link(&full)?.into_os_string().into_encoded_bytes()
        } else if metadata.is_file() {
            fs::read(&full)?
        } else {
            Vec::new()
        };
        let number = u32::try_from(number + 1).context("too many files")?;
        add_entry(&mut archive, path, number, metadata.mode(), &content)?;
    }
    add_entry(&mut archive, "TRAILER!!!", 0, 0, &[])?;
    Ok(archive)
}

fn add_entry(archive: &mut Vec<u8>, name: &str, number: u32, mode: u32, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large for an initramfs"))?;
    let name_size = u32::try_from(name.len() + 1)?;
    // inode, mode, uid, gid, links, mtime, size, device, device of a node, size of the name, no checksum
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
    Ok(())
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_the_documented_form() {
        let mut archive = Vec::new();
        add_entry(&mut archive, "ab", 1, 0o100_644, b"hello").unwrap();
        let header = "07070100000001000081A40000000000000000000000010000000000000005\
                      00000000000000000000000000000000000000030000000000";
        let mut expected = header.as_bytes()[..110].to_vec();
        expected.extend_from_slice(b"ab\0");
        expected.resize(expected.len().next_multiple_of(4), 0);
        expected.extend_from_slice(b"hello\0\0\0");
        assert_eq!(archive, expected);
    }
}
